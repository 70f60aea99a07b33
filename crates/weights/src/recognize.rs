//! What is this file, if it is not the model file it was taken for?

use crate::safetensors;

/// Names what `head` (the first bytes of a file that is not GGUF) looks like, for a refusal.
pub(crate) fn describe_foreign(head: &[u8]) -> &'static str {
    const MAGICS: &[(&[u8], &str)] = &[
        (b"PK\x03\x04", "a zip archive (PyTorch's .pt and .bin files are such, too)"),
        (b"PK\x05\x06", "an empty zip archive"),
        (b"\x1f\x8b", "a gzip archive: unpack it first"),
        (b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
        (b"BZh", "a bzip2 archive: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
        (b"\x80\x02", "a Python pickle, which is never read because it can run code"),
        (b"\x80\x03", "a Python pickle, which is never read because it can run code"),
        (b"\x80\x04", "a Python pickle, which is never read because it can run code"),
        (b"\x80\x05", "a Python pickle, which is never read because it can run code"),
        (b"lmgg", "an old GGML file, from before GGUF"),
        (b"fmgg", "an old GGML file, from before GGUF"),
        (b"tjgg", "an old GGML file, from before GGUF"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
        (b"<", "a web page or XML: perhaps an error page saved by a download"),
        (b"{", "JSON text"),
        (b"\x89HDF", "an HDF5 file"),
    ];
    if let Some((_, name)) = MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return name;
    }
    if head.get(257..262) == Some(b"ustar") {
        return "a tar archive: unpack it first";
    }
    if safetensors::is_safetensors(head) {
        return "a safetensors file: give the folder that it and config.json are in";
    }
    if head.iter().take(64).all(|byte| *byte == 0) {
        return "all zeros at its start: perhaps a download that was interrupted";
    }
    "of a kind that is not known (it does not start with the letters GGUF)"
}

#[cfg(test)]
mod tests {
    use super::describe_foreign;

    #[test]
    fn each_kind_is_named() {
        let cases: &[(&[u8], &str)] = &[
            (b"PK\x03\x04....", "zip"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\x80\x02}q\x00", "pickle"),
            (b"\x08\x00\x00\x00\x00\x00\x00\x00{\"a\":1}", "safetensors"),
            (b"version https://git-lfs.github.com/spec/v1", "LFS"),
            (b"<!DOCTYPE html>", "web page"),
            (&[0; 100], "interrupted"),
            (b"hello", "not known"),
            (b"", "interrupted"),
        ];
        for (head, word) in cases {
            let name = describe_foreign(head);
            assert!(name.contains(word), "{head:?} is called {name}");
        }
    }
}
