//! What do parent and worker say to each other?
//!
//! Frames: four bytes of length, little-endian, then so many bytes of JSON. First a [`Setup`] and
//! its [`Reply`]; then one [`RenderRequest`](crate::RenderRequest) and one [`Reply`] at a time.

use std::io::{Error, ErrorKind, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A conversation or an output of the largest size, with every byte escaped as `\u0000`.
pub(crate) const FRAME_BYTES_MAX: usize = 6 * crate::request::OUTPUT_BYTES_MAX + 1024;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) source: String,
    pub(crate) tools_source: Option<String>,
    pub(crate) bos_token: Option<String>,
    pub(crate) eos_token: Option<String>,
    pub(crate) tokens: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The template compiled.
    Ready,
    Prompt(String),
    /// The template called `raise_exception`.
    Raised(String),
    InvalidTemplate(String),
    Failed(String),
}

pub(crate) fn write_frame(stream: &mut impl Write, json: &[u8]) -> Result<(), Error> {
    let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "frame too long"))?;
    stream.write_all(&length.to_le_bytes())?;
    stream.write_all(json)?;
    stream.flush()
}

pub(crate) fn read_frame<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, Error> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(Error::new(ErrorKind::InvalidData, "frame too long"));
    }
    // Grows as bytes arrive: an announced length alone allocates nothing.
    let mut json = Vec::new();
    stream.take(length as u64).read_to_end(&mut json)?;
    if json.len() < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_frame_survives_the_way_and_a_cut_one_is_an_error() {
        let mut wire = Vec::new();
        let reply = Reply::Prompt("é\u{0}".to_owned());
        write_frame(&mut wire, &serde_json::to_vec(&reply).unwrap()).unwrap();
        assert_eq!(read_frame::<Reply>(&mut wire.as_slice()).unwrap(), reply);
        for length in 0..wire.len() {
            assert!(read_frame::<Reply>(&mut &wire[..length]).is_err());
        }
        assert!(read_frame::<Reply>(&mut [0xff; 8].as_slice()).is_err());
    }
}
