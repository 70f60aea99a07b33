//! The functions of `include/pelton_embed.h`.
//!
//! Every function catches its own panics, and takes null pointers for mistakes, not for the end of
//! the process. Functions may be called from any thread; an engine by several at once, a reply by
//! one at a time.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use pelton::embedded::{Embedded, EmbeddedOptions, EmbeddedReply};

use crate::settings;

/// Grows when a function changes its meaning.
pub const VERSION: u32 = 1;

/// An engine, behind a pointer.
pub struct Engine(Embedded);

/// A reply, behind a pointer, and what of its last bytes did not fit.
pub struct Reply {
    reply: EmbeddedReply,
    left: Vec<u8>,
    given: usize,
}

#[unsafe(no_mangle)]
pub extern "C" fn pelton_embed_version() -> u32 {
    VERSION
}

/// # Safety
/// Texts are null or end in a zero byte; `error` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_engine_open(
    model: *const c_char,
    settings: *const c_char,
    program: *const c_char,
    error: *mut *mut c_char,
) -> *mut Engine {
    let open = || {
        // SAFETY: the caller's promise about texts, for all three.
        let (model, keys) = unsafe { (text(model, "model")?, text(settings, "settings")?) };
        // SAFETY: as above.
        let program = unsafe { text(program, "program")? };
        let options = EmbeddedOptions {
            model,
            keys: keys.map_or_else(|| Ok(Vec::new()), |keys| settings::keys(&keys))?,
            program: PathBuf::from(program.ok_or("the path of the pelton program is missing")?),
        };
        let engine = Embedded::open(options).map_err(|error| format!("{error:#}"))?;
        Ok(Box::into_raw(Box::new(Engine(engine))))
    };
    // SAFETY: the caller's promise about `error`.
    unsafe { guarded(error, std::ptr::null_mut(), open) }
}

/// # Safety
/// `engine` is null or of `pelton_engine_open`, and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_engine_close(engine: *mut Engine) {
    if !engine.is_null() {
        // SAFETY: made by `Box::into_raw`, and given back once, says the caller.
        let engine = unsafe { Box::from_raw(engine) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(engine)));
    }
}

/// # Safety
/// `engine` is null or open; texts are null or end in a zero byte; `length` bytes are at `body`, or
/// none; `error` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_engine_ask(
    engine: *const Engine,
    method: *const c_char,
    path: *const c_char,
    body: *const u8,
    length: usize,
    error: *mut *mut c_char,
) -> *mut Reply {
    let ask = || {
        // SAFETY: null or open, says the caller.
        let engine = unsafe { engine.as_ref() }.ok_or("the engine is null")?;
        // SAFETY: the caller's promise about texts.
        let (method, path) = unsafe { (text(method, "method")?, text(path, "path")?) };
        let (method, path) = (method.ok_or("the method is null")?, path.ok_or("the path is null")?);
        let body = if body.is_null() || length == 0 {
            Vec::new()
        } else {
            // SAFETY: so many bytes are there, says the caller.
            unsafe { std::slice::from_raw_parts(body, length) }.to_vec()
        };
        let reply = engine.0.ask(&method, &path, body).map_err(|error| format!("{error:#}"))?;
        Ok(Box::into_raw(Box::new(Reply { reply, left: Vec::new(), given: 0 })))
    };
    // SAFETY: the caller's promise about `error`.
    unsafe { guarded(error, std::ptr::null_mut(), ask) }
}

/// # Safety
/// `reply` is null or open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_reply_status(reply: *const Reply) -> u32 {
    // SAFETY: null or open, says the caller.
    unsafe { reply.as_ref() }.map_or(0, |reply| u32::from(reply.reply.status()))
}

/// # Safety
/// `reply` is null or open, and nobody else uses it; `room` bytes at `into` can be written; `error`
/// is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_reply_read(
    reply: *mut Reply,
    into: *mut u8,
    room: usize,
    error: *mut *mut c_char,
) -> isize {
    let read = || {
        // SAFETY: null or open and not shared, says the caller.
        let reply = unsafe { reply.as_mut() }.ok_or("the reply is null")?;
        if into.is_null() || room == 0 {
            return Err("there is no room for bytes of the reply".to_owned());
        }
        while reply.given == reply.left.len() {
            match reply.reply.read().map_err(|error| format!("{error:#}"))? {
                None => return Ok(0),
                Some(bytes) => (reply.left, reply.given) = (bytes, 0),
            }
        }
        let bytes = &reply.left[reply.given..];
        let count = bytes.len().min(room).min(isize::MAX as usize);
        // SAFETY: `count` bytes are left, and there is room for so many, says the caller.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), into, count) };
        reply.given += count;
        Ok(count as isize)
    };
    // SAFETY: the caller's promise about `error`.
    unsafe { guarded(error, -1, read) }
}

/// # Safety
/// `reply` is null or of `pelton_engine_ask`, and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_reply_close(reply: *mut Reply) {
    if !reply.is_null() {
        // SAFETY: made by `Box::into_raw`, and given back once, says the caller.
        let reply = unsafe { Box::from_raw(reply) };
        let _ = catch_unwind(AssertUnwindSafe(|| drop(reply)));
    }
}

/// # Safety
/// `text` is null or an error of these functions, and not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pelton_text_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: made by `CString::into_raw`, and given back once, says the caller.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// # Safety
/// `pointer` is null or a text that ends in a zero byte.
unsafe fn text(pointer: *const c_char, what: &str) -> Result<Option<String>, String> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: it ends in a zero byte, says the caller.
    let text = unsafe { CStr::from_ptr(pointer) };
    let text = text.to_str().map_err(|_| format!("the {what} is not UTF-8"))?;
    Ok(Some(text.to_owned()))
}

/// Does it, and writes why not to `error`.
///
/// # Safety
/// `error` is null or valid for a write.
unsafe fn guarded<T>(
    error: *mut *mut c_char,
    failed: T,
    work: impl FnOnce() -> Result<T, String>,
) -> T {
    let done = catch_unwind(AssertUnwindSafe(work));
    let why = match done {
        Ok(Ok(value)) => return value,
        Ok(Err(why)) => why,
        Err(_) => "a bug in pelton: it panicked".to_owned(),
    };
    if !error.is_null() {
        let why = CString::new(why.replace('\0', " ")).unwrap_or_default();
        // SAFETY: valid for a write, says the caller.
        unsafe { *error = why.into_raw() };
    }
    failed
}
