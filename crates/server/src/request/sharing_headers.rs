//! May the answer be another request's, and does the caller want to know?
//!
//! `x-pelton-sharing` is `on`, `fresh` (computed anew; others may use the answer) or `off`
//! (computed for this request alone, nothing remembered). `cache-control: no-cache` is read as
//! `fresh` and `no-store` as `off`; its other directives ask for nothing here. The strictest wins.

use axum::http::{HeaderMap, header};
use messages::{CacheNamespace, SharingMode};
use sha2::{Digest, Sha256};

use super::Fields;
use crate::reply::ApiError;

pub(crate) const SHARING: &str = "x-pelton-sharing";
/// Of replies only: how long it waited for a place.
pub(crate) const QUEUE: &str = "x-pelton-queue";
const EXPLAIN: &str = "x-pelton-explain";
const SALT: &str = "x-pelton-cache-salt";
/// Longer than any hash or name of a user.
const SALT_BYTES_MAX: usize = 256;

/// What a request says about sharing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SharingHeaders {
    pub(crate) mode: SharingMode,
    explains: bool,
    salt: Option<String>,
    tenant: String,
}

impl SharingHeaders {
    /// # Errors
    /// 400 for a value that means nothing.
    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mode = match text(headers, SHARING)?.as_deref() {
            None | Some("on") => SharingMode::On,
            Some("fresh") => SharingMode::Fresh,
            Some("off") => SharingMode::Off,
            Some(_) => return Err(wrong(SHARING, "`on`, `fresh` or `off`")),
        };
        let explains = match text(headers, EXPLAIN)?.as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(_) => return Err(wrong(EXPLAIN, "`0` or `1`")),
        };
        let (salt, tenant) = (text(headers, SALT)?, tenant(headers)?);
        Ok(Self { mode: strictest(mode, cache_control(headers)), explains, salt, tenant })
    }

    /// Whose request it is, but for a salt.
    pub(crate) fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Whether the reply is to say how it came about: by the header or the field `x_explain`.
    pub(crate) fn explains(&self, fields: &mut Fields<'_>) -> Result<bool, ApiError> {
        Ok(fields.boolean("x_explain")?.unwrap_or(false) || self.explains)
    }

    /// Whose request it is; `cache_salt` may be a field or a header.
    pub(crate) fn namespace(&self, fields: &mut Fields<'_>) -> Result<CacheNamespace, ApiError> {
        let field = fields.string("cache_salt")?;
        let salt = match (field, self.salt.clone()) {
            (Some(field), Some(header)) if field != header => {
                let text = format!("cache_salt and the header {SALT} differ: send one");
                return Err(ApiError::invalid(Some("cache_salt"), text));
            }
            (field, header) => field.or(header).unwrap_or_default(),
        };
        if salt.len() > SALT_BYTES_MAX {
            let bytes = salt.len();
            let text = format!("cache_salt has {bytes} bytes, the most is {SALT_BYTES_MAX}");
            return Err(ApiError::invalid(Some("cache_salt"), text));
        }
        let tenant = self.tenant.clone();
        Ok(CacheNamespace { tenant, salt, ..CacheNamespace::default() })
    }
}

/// Whose request it is, by its API key, a bearer token or Anthropic's `x-api-key`; who sends none
/// shares a name with all who send none. Keys are told apart and not checked. Of a key only a
/// digest is kept: 128 bits, so that no two meet.
fn tenant(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(authorization) = text(headers, "authorization")?.or(text(headers, "x-api-key")?)
    else {
        return Ok(String::new());
    };
    let (scheme, key) = authorization.split_once(' ').unwrap_or(("", &authorization));
    let key = if scheme.eq_ignore_ascii_case("bearer") { key.trim() } else { &authorization };
    let digest = Sha256::digest(key.as_bytes());
    Ok(digest[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

fn cache_control(headers: &HeaderMap) -> SharingMode {
    let values = headers.get_all(header::CACHE_CONTROL).iter();
    let values = values.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
    let asked = values.map(|directive| match directive.trim().to_ascii_lowercase().as_str() {
        "no-store" => SharingMode::Off,
        "no-cache" => SharingMode::Fresh,
        _ => SharingMode::On,
    });
    asked.fold(SharingMode::On, strictest)
}

fn strictest(one: SharingMode, other: SharingMode) -> SharingMode {
    match (one, other) {
        (SharingMode::Off, _) | (_, SharingMode::Off) => SharingMode::Off,
        (SharingMode::Fresh, _) | (_, SharingMode::Fresh) => SharingMode::Fresh,
        (SharingMode::On, SharingMode::On) => SharingMode::On,
    }
}

/// The value of a header that may be there once.
fn text(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(wrong(name, "there once"));
    }
    let text = first.map(|value| value.to_str().map(|text| text.trim().to_owned()));
    text.transpose().map_err(|_| wrong(name, "printable ASCII"))
}

fn wrong(name: &'static str, expected: &str) -> ApiError {
    ApiError::invalid(Some(name), format!("the header {name} must be {expected}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use axum::http::HeaderValue;

    use super::*;

    fn read(pairs: &[(&'static str, &'static str)]) -> Result<SharingHeaders, ApiError> {
        let mut headers = HeaderMap::new();
        for &(name, value) in pairs {
            headers.append(name, HeaderValue::from_static(value));
        }
        SharingHeaders::read(&headers)
    }

    #[test]
    fn the_strictest_wish_wins() {
        for (pairs, expected) in [
            (&[][..], SharingMode::On),
            (&[("x-pelton-sharing", "on")], SharingMode::On),
            (&[("x-pelton-sharing", "off")], SharingMode::Off),
            (&[("x-pelton-sharing", "fresh")], SharingMode::Fresh),
            (&[("cache-control", "max-age=0, No-Cache")], SharingMode::Fresh),
            (&[("cache-control", "no-cache"), ("cache-control", "no-store")], SharingMode::Off),
            (&[("cache-control", "no-cache"), ("x-pelton-sharing", "off")], SharingMode::Off),
            (&[("cache-control", "private")], SharingMode::On),
        ] {
            assert_eq!(read(pairs).unwrap().mode, expected, "{pairs:?}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused_by_name() {
        for (name, value) in
            [("x-pelton-sharing", "maybe"), ("x-pelton-explain", "yes"), ("x-pelton-explain", "")]
        {
            let error = read(&[(name, value)]).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(name), "{value}");
        }
        assert!(read(&[("x-pelton-explain", "1"), ("x-pelton-explain", "1")]).is_err());
    }

    #[test]
    fn a_key_names_a_tenant_and_is_not_kept() {
        let tenant = |pairs: &[(&'static str, &'static str)]| {
            let mut fields = Fields::parse(b"{}").unwrap();
            read(pairs).unwrap().namespace(&mut fields).unwrap().tenant
        };
        assert_eq!(tenant(&[]), "");
        let one = tenant(&[("authorization", "Bearer one")]);
        assert_eq!(one.len(), 32);
        assert_eq!(one, tenant(&[("authorization", "bearer  one")]));
        assert_ne!(one, tenant(&[("authorization", "Bearer two")]));
        assert_ne!(one, tenant(&[("authorization", "Basic one")]));
        assert!(!one.contains("one"));
        assert!(read(&[("authorization", "a"), ("authorization", "b")]).is_err());
    }

    #[test]
    fn the_salt_is_a_field_or_a_header() {
        let salt = |body: &str, pairs: &[(&'static str, &'static str)]| {
            let mut fields = Fields::parse(body.as_bytes()).unwrap();
            read(pairs).unwrap().namespace(&mut fields).map(|namespace| namespace.salt)
        };
        let header = [("x-pelton-cache-salt", "a")];
        assert_eq!(salt("{}", &[]).unwrap(), "");
        assert_eq!(salt("{}", &header).unwrap(), "a");
        assert_eq!(salt("{\"cache_salt\": \"b\"}", &[]).unwrap(), "b");
        assert_eq!(salt("{\"cache_salt\": \"a\"}", &header).unwrap(), "a");
        for body in ["{\"cache_salt\": \"b\"}".to_owned(), "{\"cache_salt\": 1}".to_owned()] {
            assert!(salt(&body, &header).is_err(), "{body}");
        }
        let long = format!("{{\"cache_salt\": \"{}\"}}", "x".repeat(257));
        assert!(salt(&long, &[]).unwrap_err().body.message.contains("257"));
    }
}
