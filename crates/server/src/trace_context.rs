//! To which trace does a request belong? W3C Trace Context: `traceparent` is
//! `00-TRACE-PARENT-FLAGS`, in lower-case hex.

use axum::http::HeaderMap;

/// A request's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceContext {
    pub(crate) trace: u128,
    /// The caller's span; `None`: the trace begins here.
    pub(crate) parent: Option<u64>,
    /// Where the ids of the request's own spans begin.
    pub(crate) own: u64,
    pub(crate) is_sampled: bool,
}

impl TraceContext {
    /// The caller's, where it sends one that is right; one that is not is passed over, as the
    /// standard asks.
    pub(crate) fn read(headers: &HeaderMap, own: u64) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        let text = value.to_str().ok()?;
        let mut parts = text.split('-');
        let version = hex(parts.next()?, 2)?;
        let trace = hex(parts.next()?, 32)?;
        let parent = hex(parts.next()?, 16)? as u64;
        let flags = hex(parts.next()?, 2)?;
        // Later versions may say more behind; the first may not.
        let is_right = version != 0xff && (version > 0 || parts.next().is_none());
        (is_right && trace != 0 && parent != 0).then_some(Self {
            trace,
            parent: Some(parent),
            own,
            is_sampled: flags & 1 == 1,
        })
    }
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_right = text.len() == digits && text.bytes().all(is_digit);
    is_right.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use axum::http::HeaderValue;

    use super::*;

    fn read(text: &'static str) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        headers.append("traceparent", HeaderValue::from_static(text));
        TraceContext::read(&headers, 7)
    }

    #[test]
    fn a_parent_is_read_as_the_standard_writes_it() {
        let context = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert_eq!(context.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((context.parent, context.is_sampled), (Some(0xb7ad_6b71_6920_3331), true));
        assert!(
            !read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00").unwrap().is_sampled
        );
        assert!(read("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
