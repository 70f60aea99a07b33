//! How does the parent get a prompt from a child that may hang, crash or grow?
//!
//! Every child has one thread here that talks to it, because a pipe has no deadline; the caller
//! waits for that thread, and kills the child when the time is over, which ends the thread's I/O.

use std::io::{self, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::{Reply, Setup, read_frame, write_frame};
use crate::request::{CONVERSATION_BYTES_MAX, RenderRequest, TEMPLATE_BYTES_MAX, TemplateSetup};
use crate::{ChatError, TemplateLimits};

/// A template, ready to render; shared by any number of threads.
#[derive(Debug)]
pub struct TemplateWorker {
    /// The first frame of every child.
    setup_json: Vec<u8>,
    limits: TemplateLimits,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Debug)]
struct Pool {
    command: Command,
    idle: Vec<Worker>,
    /// Idle and rendering.
    alive_count: usize,
}

/// One child and the channels to its thread. Dropping it kills the child.
#[derive(Debug)]
struct Worker {
    child: Child,
    requests: SyncSender<Vec<u8>>,
    replies: Receiver<io::Result<Reply>>,
}

impl TemplateWorker {
    /// Starts the first child with `command` and compiles the template in it.
    ///
    /// `command` must run [`worker_main`](crate::worker_main); its environment is emptied, so that
    /// no template is ever near a secret.
    ///
    /// # Errors
    /// When the template is too large or not valid, or the child cannot be started.
    pub fn spawn(mut command: Command, setup: TemplateSetup) -> Result<Self, ChatError> {
        let tools_bytes = setup.tools_source.as_ref().map_or(0, String::len);
        let (bytes, bytes_max) = (setup.source.len().max(tools_bytes), TEMPLATE_BYTES_MAX);
        if bytes > bytes_max {
            return Err(ChatError::TemplateTooLarge { bytes, bytes_max });
        }
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let TemplateSetup { source, tools_source, bos_token, eos_token, tokens, limits } = setup;
        let setup_json = to_json(&Setup { source, tools_source, bos_token, eos_token, tokens })?;
        let pool = Mutex::new(Pool { command, idle: Vec::new(), alive_count: 0 });
        let worker = Self { setup_json, limits, pool, returned: Condvar::new() };
        let first = worker.take()?;
        worker.give_back(Some(first));
        Ok(worker)
    }

    /// Renders one conversation; blocks for at most two deadlines and the wait for a free child.
    ///
    /// # Errors
    /// [`ChatError`] says whether the caller, the template or the machine is at fault. The next
    /// request is served whatever happened to this one.
    pub fn render(&self, request: &RenderRequest) -> Result<String, ChatError> {
        request.check_names()?;
        let json = to_json(request)?;
        let (bytes, bytes_max) = (json.len(), CONVERSATION_BYTES_MAX);
        if bytes > bytes_max {
            return Err(ChatError::ConversationTooLarge { bytes, bytes_max });
        }
        let mut outcome = Err(ChatError::WorkerDied);
        // A child may have died since its last render, by its processor limit or by a person's
        // hand: a fresh one decides whether this request is to blame.
        for _ in 0..2 {
            let worker = self.take()?;
            outcome = worker.exchange(json.clone(), self.limits.deadline);
            let sound = !matches!(outcome, Err(ChatError::TooSlow { .. } | ChatError::WorkerDied));
            self.give_back(sound.then_some(worker));
            if outcome != Err(ChatError::WorkerDied) {
                break;
            }
        }
        match outcome? {
            Reply::Prompt(text) => Ok(text),
            Reply::Raised(text) => Err(ChatError::Raised { text }),
            Reply::Failed(why) => Err(ChatError::RenderFailed { why }),
            Reply::Ready | Reply::InvalidTemplate(_) => Err(ChatError::WorkerDied),
        }
    }

    /// An idle child, or a new one where the limit allows, or the next that comes back.
    fn take(&self) -> Result<Worker, ChatError> {
        // Long enough for a short queue of renders that all meet their deadline.
        let patience = Instant::now() + 5 * self.limits.deadline;
        let mut pool = self.lock();
        loop {
            if let Some(worker) = pool.idle.pop() {
                return Ok(worker);
            }
            if pool.alive_count < self.limits.workers_max.max(1) {
                break;
            }
            let left = patience.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ChatError::Busy);
            }
            let woken = self.returned.wait_timeout(pool, left);
            pool = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        pool.alive_count += 1;
        let started = Worker::start(&mut pool.command);
        drop(pool);
        let ready = started.and_then(|worker| {
            match worker.exchange(self.setup_json.clone(), self.limits.deadline)? {
                Reply::Ready => Ok(worker),
                Reply::InvalidTemplate(why) => Err(ChatError::InvalidTemplate { why }),
                Reply::Prompt(_) | Reply::Raised(_) | Reply::Failed(_) => {
                    Err(ChatError::CannotStart { why: "it speaks another protocol".to_owned() })
                }
            }
        });
        if ready.is_err() {
            self.give_back(None);
        }
        ready
    }

    /// Ends a use of [`Self::take`]: the child, or `None` when it was killed or died.
    fn give_back(&self, worker: Option<Worker>) {
        let mut pool = self.lock();
        match worker {
            Some(worker) => pool.idle.push(worker),
            None => pool.alive_count -= 1,
        }
        drop(pool);
        self.returned.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        // Nothing between lock and unlock leaves the pool half changed.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worker {
    fn start(command: &mut Command) -> Result<Self, ChatError> {
        let cannot_start = |error: io::Error| ChatError::CannotStart { why: error.to_string() };
        let mut child = command.spawn().map_err(cannot_start)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(ChatError::CannotStart { why: "it has no pipes".to_owned() });
        };
        let (requests, to_send) = sync_channel(1);
        let (received, replies) = sync_channel(1);
        let worker = Self { child, requests, replies };
        std::thread::Builder::new()
            .name("template-pipe".to_owned())
            .spawn(move || talk(input, output, &to_send, &received))
            .map_err(cannot_start)?;
        Ok(worker)
    }

    fn exchange(&self, json: Vec<u8>, deadline: Duration) -> Result<Reply, ChatError> {
        self.requests.send(json).map_err(|_| ChatError::WorkerDied)?;
        match self.replies.recv_timeout(deadline) {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => Err(ChatError::WorkerDied),
            Err(RecvTimeoutError::Timeout) => {
                Err(ChatError::TooSlow { deadline_ms: deadline.as_millis() })
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be gone already; waiting takes it out of the process table either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The thread of one child: ends when the parent drops its side or the child's pipes close.
fn talk(
    mut input: ChildStdin,
    output: ChildStdout,
    requests: &Receiver<Vec<u8>>,
    replies: &SyncSender<io::Result<Reply>>,
) {
    let mut output = BufReader::new(output);
    while let Ok(json) = requests.recv() {
        let reply = write_frame(&mut input, &json).and_then(|()| read_frame(&mut output));
        let broken = reply.is_err();
        if replies.send(reply).is_err() || broken {
            return;
        }
    }
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, ChatError> {
    serde_json::to_vec(value).map_err(|error| ChatError::CannotStart { why: error.to_string() })
}
