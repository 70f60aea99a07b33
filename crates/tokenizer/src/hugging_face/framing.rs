//! What does the post-processor of a `tokenizer.json` put around a text?

use serde_json::Value;

use super::error::HuggingFaceError;
use super::splitting::{flatten, kind, unsupported};
use crate::vocabulary::shorten;

const SUPPORTED: &str = "TemplateProcessing, ByteLevel, RobertaProcessing, BertProcessing";
/// Published ones have two at most (GLM-4).
const FRAME_TOKENS_MAX: usize = 16;

/// Ids before and behind a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) begin: Vec<u32>,
    pub(crate) end: Vec<u32>,
    /// Between two texts.
    pub(crate) between: Vec<u32>,
}

impl Frame {
    pub(crate) fn read(
        processor: &Value,
        find: impl Fn(&str) -> Option<u32>,
    ) -> Result<Frame, HuggingFaceError> {
        let mut frame = Frame::default();
        for part in flatten(processor, "processors") {
            match kind(part) {
                "ByteLevel" => {}
                "TemplateProcessing" => frame.take_template(part)?,
                other @ ("RobertaProcessing" | "BertProcessing") => {
                    let id = |name: &str| {
                        let text = part[name][0].as_str().unwrap_or_default();
                        find(text).ok_or_else(|| damaged(&format!("no token {:?}", shorten(text))))
                    };
                    frame.begin.push(id("cls")?);
                    let end = id("sep")?;
                    frame.end.push(end);
                    frame.between.push(end);
                    frame.between.extend((other == "RobertaProcessing").then_some(end));
                }
                other => {
                    return Err(unsupported(&format!("post-processor {other}"), SUPPORTED));
                }
            }
        }
        if frame.begin.len() + frame.end.len() > FRAME_TOKENS_MAX {
            return Err(damaged(&format!("over {FRAME_TOKENS_MAX} tokens around a text")));
        }
        Ok(frame)
    }

    fn take_template(&mut self, part: &Value) -> Result<(), HuggingFaceError> {
        let pieces =
            part["single"].as_array().ok_or_else(|| damaged("a template without parts"))?;
        let mut behind = false;
        for piece in pieces {
            if piece.get("Sequence").is_some() {
                if behind {
                    return Err(damaged("the text twice in a template"));
                }
                behind = true;
                continue;
            }
            let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
            let ids = part["special_tokens"][name]["ids"].as_array();
            let no_ids = || damaged(&format!("no ids for {:?} of its template", shorten(name)));
            for id in ids.ok_or_else(no_ids)? {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(no_ids)?;
                if behind { &mut self.end } else { &mut self.begin }.push(id);
            }
        }
        if !behind {
            return Err(damaged("a template without the text"));
        }
        self.take_pair(part);
        Ok(())
    }

    /// What a template of two texts has between them; nothing where there is none.
    fn take_pair(&mut self, part: &Value) {
        let pieces = part["pair"].as_array().map(Vec::as_slice).unwrap_or_default();
        let is_text = |piece: &&Value| piece.get("Sequence").is_some();
        let inner = pieces.iter().skip_while(|piece| !is_text(piece)).skip(1);
        for piece in inner.take_while(|piece| !is_text(piece)) {
            let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
            let ids = part["special_tokens"][name]["ids"].as_array();
            let ids = ids.into_iter().flatten().filter_map(Value::as_u64);
            self.between.extend(ids.filter_map(|id| u32::try_from(id).ok()));
        }
        self.between.truncate(FRAME_TOKENS_MAX);
    }
}

fn damaged(what: &str) -> HuggingFaceError {
    let what = format!("its post_processor has {what}");
    HuggingFaceError::Damaged { file: "tokenizer.json", what }
}
