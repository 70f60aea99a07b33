//! Which vectors do these texts have? Each is a request of its own to the engine; of many only some
//! wait there at once, and all end with the connection that asked.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine::{GenerateRequest, ModelCard, Prompt, Urgency};
use messages::{CacheNamespace, Fault, SamplingParams, SharingMode};

use crate::app::App;
use crate::reply::{ApiError, ended};

/// Whose vectors they are, and when they are wanted.
pub(crate) struct Asked {
    pub(crate) namespace: CacheNamespace,
    pub(crate) sharing: SharingMode,
    pub(crate) urgency: Urgency,
}

/// A text's vector.
pub(crate) struct Vector {
    pub(crate) values: Vec<f32>,
    pub(crate) tokens: u64,
}

/// One for each prompt, in their order.
///
/// # Errors
/// The first that is refused or fails; the others end with it.
pub(crate) async fn vectors(
    app: &Arc<App>,
    card: &ModelCard,
    asked: &Asked,
    prompts: Vec<Prompt>,
) -> Result<Vec<Vector>, ApiError> {
    let count = prompts.len();
    let mut window = Window {
        waiting: prompts.into_iter().enumerate().collect::<Vec<_>>().into_iter(),
        running: Vec::new(),
        running_max: app.options.choices_max as usize,
        found: std::iter::repeat_with(|| None).take(count).collect(),
        start: |prompt| Box::pin(one(app, request(card, asked, prompt))),
    };
    poll_fn(|context| window.poll(context)).await?;
    Ok(window.found.into_iter().flatten().collect())
}

/// Of length 1, unless it has none: so that vectors of one model can be compared.
pub(crate) fn unit_length(values: &mut [f32]) {
    let square: f64 = values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
    if square > 0.0 {
        let scale = square.sqrt().recip();
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
}

fn request(card: &ModelCard, asked: &Asked, prompt: Prompt) -> GenerateRequest {
    GenerateRequest {
        model: card.id.clone(),
        prompt,
        // A vector comes where a token would.
        params: SamplingParams {
            max_tokens: Some(1),
            ignore_eos: true,
            speculation: Some(false),
            ..SamplingParams::greedy()
        },
        stop: Vec::new(),
        include_stop: false,
        namespace: asked.namespace.clone(),
        sharing: asked.sharing,
        urgency: asked.urgency,
    }
}

async fn one(app: &App, request: GenerateRequest) -> Result<Vector, ApiError> {
    let mut generation = app.service.generate(request).await?;
    generation.started().await?;
    while let Some(delta) = generation.next().await {
        if ended(delta.end.as_ref())?.is_none() {
            continue;
        }
        if let Some(values) = generation.take_vector() {
            let tokens = u64::from(generation.prompt_tokens);
            return Ok(Vector { values: values.into_vec(), tokens });
        }
    }
    app.metrics.count_failed_answer();
    Err(ApiError::failed(&Fault("the engine gave no vector".to_owned())))
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Vector, ApiError>> + Send + 'a>>;

/// Some of many at once.
struct Window<'a, S: Fn(Prompt) -> Running<'a>> {
    waiting: std::vec::IntoIter<(usize, Prompt)>,
    running: Vec<(usize, Running<'a>)>,
    running_max: usize,
    found: Vec<Option<Vector>>,
    start: S,
}

impl<'a, S: Fn(Prompt) -> Running<'a>> Window<'a, S> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        loop {
            while self.running.len() < self.running_max
                && let Some((index, prompt)) = self.waiting.next()
            {
                self.running.push((index, (self.start)(prompt)));
            }
            let before = self.running.len();
            let mut place = 0;
            while place < self.running.len() {
                let (index, running) = &mut self.running[place];
                match running.as_mut().poll(context) {
                    Poll::Pending => place += 1,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Ready(Ok(vector)) => {
                        self.found[*index] = Some(vector);
                        drop(self.running.swap_remove(place));
                    }
                }
            }
            if self.running.is_empty() && self.waiting.len() == 0 {
                return Poll::Ready(Ok(()));
            }
            // Who came to an end made room for others, which must be polled, too.
            if self.running.len() == before || self.waiting.len() == 0 {
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::unit_length;

    #[test]
    fn lengths_become_one() {
        let mut values = [3.0, -4.0];
        unit_length(&mut values);
        assert_eq!(values, [0.6, -0.8]);
        let mut nothing = [0.0; 3];
        unit_length(&mut nothing);
        assert_eq!(nothing, [0.0; 3]);
    }
}
