//! What did a backend make of a model's weights at the last start, and may it be used again?
//!
//! A packed file is a cache. It may be stale, cut off or damaged, and is then worth nothing but a
//! word: nothing in it is believed before it is compared with what it must be, its length is known
//! beforehand from the key, and each chunk of its data has a checksum that is compared before it is
//! used, in the copy that will be used or where it is mapped. The checksums find accidents. Whoever
//! may write the file can still put other weights there, as in the model file beside it; wrong
//! weights, never unsound.
//!
//! Layout, little-endian: a head of `HEAD_BYTES`, the data, then a table of one u64 checksum for
//! each chunk of `CHUNK_BYTES`, then a checksum of head and table. The head is `MAGIC`, the
//! version, the source (bytes, modification time, checksum of everything before its tensors), the
//! plan, the length of the data, and the layout's name with its length in front.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::mapped_file::{self, MappedFile};
use crate::{WeightFile, WeightsError};

const MAGIC: [u8; 8] = *b"PELTPACK";
/// Of this file's layout; that of the data is the backend's to name.
const VERSION: u64 = 1;
/// A page, so that the data starts on one.
const HEAD_BYTES: usize = 4096;
const LAYOUT_BYTES_MAX: usize = 256;
/// Large enough to be read in one go, small enough that threads share the work evenly.
const CHUNK_BYTES: usize = 1 << 20;
/// The disk is asked for so many chunks at once, and so many before they are looked at.
const ASKED_CHUNKS: usize = 8;
const AHEAD_CHUNKS: usize = 32;

/// Whatever decides what the data means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedIdentity {
    pub source: SourceIdentity,
    /// The backend's name for its layout; at most 256 bytes.
    pub layout: String,
    /// The backend's digest of which tensors lie where.
    pub plan: u64,
    pub data_bytes: u64,
}

/// Which model file it was made from, without reading all of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceIdentity {
    pub file_bytes: u64,
    /// Nanoseconds since 1970; of the newest part.
    pub modified: u64,
    /// Of everything before the tensors' data: metadata, tokenizer, tensor table.
    pub head_checksum: u64,
}

/// Why a packed file is not used.
#[derive(Debug, thiserror::Error)]
pub enum PackedFlaw {
    #[error("there is none")]
    Absent,
    #[error("it is stale: {0}")]
    Stale(&'static str),
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// A packed file that belongs to what was asked for. Its data is not checked yet.
#[derive(Debug)]
pub struct PackedFile {
    file: MappedFile,
    data_bytes: usize,
}

impl SourceIdentity {
    /// # Errors
    /// [`WeightsError::Io`] if a file's time cannot be read.
    pub fn of(model: &WeightFile) -> Result<Self, WeightsError> {
        let mut identity = Self { file_bytes: model.file_bytes(), modified: 0, head_checksum: 0 };
        for part in model.parts() {
            let path = part.path();
            let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
            let modified = modified.map_err(|reason| WeightsError::Io {
                action: "read the time of",
                path: path.to_owned(),
                reason,
            })?;
            let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            let nanoseconds = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
            identity.modified = identity.modified.max(nanoseconds);
            let head = checksum(part.head_bytes());
            identity.head_checksum = identity.head_checksum.rotate_left(1) ^ head;
        }
        if model.folder().is_some() {
            identity.head_checksum ^= checksum(model.folder_settings());
        }
        Ok(identity)
    }
}

impl PackedFile {
    /// Opens the packed file at `path` if it is what `identity` says.
    ///
    /// # Errors
    /// [`PackedFlaw`]: why it cannot be used.
    pub fn open(path: &Path, identity: &PackedIdentity) -> Result<Self, PackedFlaw> {
        let damaged = |text: &str| PackedFlaw::Damaged(text.to_owned());
        match fs::metadata(path) {
            Err(_) => return Err(PackedFlaw::Absent),
            Ok(metadata) if !metadata.is_file() => return Err(damaged("it is no regular file")),
            Ok(metadata) if metadata.len() == 0 => return Err(damaged("it is empty")),
            Ok(_) => {}
        }
        let file =
            MappedFile::open(path).map_err(|error| PackedFlaw::Damaged(error.to_string()))?;
        let bytes = file.bytes();
        let head = bytes.get(..HEAD_BYTES).ok_or_else(|| damaged("it is shorter than its head"))?;
        if head[..8] != MAGIC {
            return Err(damaged("it is another kind of file"));
        }
        let wanted = write_head(identity).ok_or(PackedFlaw::Stale("the layout has no name"))?;
        if head != wanted {
            return Err(PackedFlaw::Stale(difference(head, &wanted)));
        }
        let data_bytes = usize::try_from(identity.data_bytes)
            .map_err(|_| damaged("it is larger than this machine's memory"))?;
        let table_start = HEAD_BYTES.saturating_add(data_bytes);
        let table_bytes = 8 * data_bytes.div_ceil(CHUNK_BYTES);
        if Some(bytes.len()) != table_start.checked_add(table_bytes + 8) {
            return Err(damaged("it has another length than it should"));
        }
        let (table, sum) = bytes[table_start..].split_at(table_bytes);
        if table_checksum(head, table).to_le_bytes() != sum {
            return Err(damaged("the checksum of its table is wrong"));
        }
        Ok(Self { file, data_bytes })
    }

    /// Keeps others from writing to it, where the system can, until this is dropped.
    pub fn hold(&self) -> bool {
        self.file.hold()
    }

    pub fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    /// Copies a chunk of the data to `to` and compares the copy's checksum; false if it is wrong,
    /// or `to` is not as long as the chunk.
    pub fn copy_chunk(&self, index: usize, to: &mut [u8]) -> bool {
        let Some(chunk) = self.chunk(index).filter(|chunk| chunk.len() == to.len()) else {
            return false;
        };
        to.copy_from_slice(chunk);
        self.is_right(index, to)
    }

    /// The data where it is mapped: what somebody writes into the file shows here, too.
    pub fn data(&self) -> &[u8] {
        &self.file.bytes()[HEAD_BYTES..HEAD_BYTES + self.data_bytes]
    }

    /// Compares the checksum of a chunk where it is mapped; false if it is wrong, or there is no
    /// such chunk.
    pub fn check_chunk(&self, index: usize) -> bool {
        self.chunk(index).is_some_and(|chunk| self.is_right(index, chunk))
    }

    /// Lets go of the pages of this range of the data.
    pub fn release(&self, range: Range<usize>) {
        self.file.release(HEAD_BYTES + range.start..HEAD_BYTES + range.end);
    }

    /// A chunk, in memory. They are asked for in their order, or nearly so.
    fn chunk(&self, index: usize) -> Option<&[u8]> {
        let chunk = self.data().chunks(CHUNK_BYTES).nth(index)?;
        if index.is_multiple_of(ASKED_CHUNKS) {
            let first = if index == 0 { 0 } else { index + AHEAD_CHUNKS };
            let start = HEAD_BYTES + first * CHUNK_BYTES;
            let end = HEAD_BYTES + (index + AHEAD_CHUNKS + ASKED_CHUNKS) * CHUNK_BYTES;
            self.file.expect(start..end);
        }
        let start = HEAD_BYTES + index * CHUNK_BYTES;
        self.file.fetch(start..start + chunk.len());
        Some(chunk)
    }

    fn is_right(&self, index: usize, chunk: &[u8]) -> bool {
        let table_start = HEAD_BYTES + self.data_bytes;
        let kept = &self.file.bytes()[table_start + 8 * index..][..8];
        checksum(chunk).to_le_bytes() == kept
    }
}

/// Writes a packed file: under another name first, so that none is ever seen half written.
///
/// `pieces` follow each other, each padded with zeros to `alignment`.
///
/// # Errors
/// The system's, or that another kind of file has this name; nothing is changed then.
pub fn write_packed(
    path: &Path,
    identity: &PackedIdentity,
    pieces: &[&[u8]],
    alignment: usize,
) -> std::io::Result<()> {
    // What a link points to is replaced, and not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if is_foreign(path)? {
        let text = "another kind of file has this name, and is not replaced";
        return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text));
    }
    let temporary = temporary_name(path);
    let file = create_alone(&temporary)?;
    let written =
        write_whole(file, identity, pieces, alignment).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Whether something is there that was never a packed file: a device or a pipe, which is not
/// opened, or a model given by mistake.
fn is_foreign(path: &Path) -> std::io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    let mut start = Vec::new();
    File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(!MAGIC.starts_with(&start))
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// Makes a file that is this process's as long as it is open, in place of one that a process left
/// which ended before it was done.
fn create_alone(path: &Path) -> std::io::Result<File> {
    let file = match File::create_new(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            if is_foreign(path)? || File::open(path)?.try_lock().is_err() {
                let text = format!("{} is another process's to write", path.display());
                return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text));
            }
            fs::remove_file(path)?;
            File::create_new(path)?
        }
        created => created?,
    };
    // Where locks are unknown two may write at a time, and the second to be done fails.
    let _ = file.try_lock();
    Ok(file)
}

fn write_whole(
    file: File,
    identity: &PackedIdentity,
    pieces: &[&[u8]],
    alignment: usize,
) -> std::io::Result<()> {
    let head = write_head(identity).ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut out = BufWriter::new(file);
    out.write_all(&head)?;
    let mut table = Vec::new();
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    let mut data_bytes = 0;
    for piece in pieces {
        let padding = vec![0; piece.len().next_multiple_of(alignment) - piece.len()];
        for mut part in [*piece, &padding] {
            data_bytes += part.len() as u64;
            while !part.is_empty() {
                let (now, later) = part.split_at(part.len().min(CHUNK_BYTES - chunk.len()));
                chunk.extend_from_slice(now);
                part = later;
                if chunk.len() == CHUNK_BYTES {
                    finish_chunk(&mut chunk, &mut table, &mut out)?;
                }
            }
        }
    }
    if !chunk.is_empty() {
        finish_chunk(&mut chunk, &mut table, &mut out)?;
    }
    if data_bytes != identity.data_bytes {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    out.write_all(&table)?;
    out.write_all(&table_checksum(&head, &table).to_le_bytes())?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

fn finish_chunk(
    chunk: &mut Vec<u8>,
    table: &mut Vec<u8>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    table.extend_from_slice(&checksum(chunk).to_le_bytes());
    out.write_all(chunk)?;
    chunk.clear();
    Ok(())
}

/// `None` if the layout's name is too long.
fn write_head(identity: &PackedIdentity) -> Option<Vec<u8>> {
    let PackedIdentity { source, layout, plan, data_bytes } = identity;
    if layout.len() > LAYOUT_BYTES_MAX {
        return None;
    }
    let mut head = MAGIC.to_vec();
    let SourceIdentity { file_bytes, modified, head_checksum } = *source;
    let name_bytes = layout.len() as u64;
    for word in [VERSION, file_bytes, modified, head_checksum, *plan, *data_bytes, name_bytes] {
        head.extend_from_slice(&word.to_le_bytes());
    }
    head.extend_from_slice(layout.as_bytes());
    head.resize(HEAD_BYTES, 0);
    Some(head)
}

/// What a head that is not the wanted one disagrees on first.
fn difference(head: &[u8], wanted: &[u8]) -> &'static str {
    let fields = [
        "it was written by another version of this program",
        "the model file has another length now",
        "the model file was changed since",
        "the model file's settings or tensors are others now",
        "the model's weights are laid out otherwise now",
        "the model's weights take other space now",
    ];
    let differs = |index: &usize| {
        let word = 8 * (1 + index)..8 * (2 + index);
        head[word.clone()] != wanted[word]
    };
    let first = (0..fields.len()).find(differs);
    first.map_or("it was packed for another instruction set or layout", |index| fields[index])
}

fn table_checksum(head: &[u8], table: &[u8]) -> u64 {
    checksum(head) ^ checksum(table).rotate_left(1)
}

/// Eight chains side by side keep the multiplier busy: as fast as memory. Each step is a bijection
/// of its chain, so no change within one word is ever missed.
fn checksum(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let mut chains = [1u64, 2, 3, 4, 5, 6, 7, 8];
    let (stripes, rest) = bytes.as_chunks::<64>();
    for stripe in stripes {
        mapped_file::fetch_ahead(stripe);
        let (words, _) = stripe.as_chunks::<8>();
        for (chain, word) in chains.iter_mut().zip(words) {
            *chain = step(*chain, u64::from_le_bytes(*word));
        }
    }
    let mut sum = chains.into_iter().fold(bytes.len() as u64, step);
    for byte in rest {
        sum = step(sum, u64::from(*byte));
    }
    sum ^ (sum >> 32)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn identity() -> PackedIdentity {
        PackedIdentity {
            source: SourceIdentity { file_bytes: 10, modified: 20, head_checksum: 30 },
            layout: "test 1".to_owned(),
            plan: 40,
            data_bytes: (CHUNK_BYTES + 128) as u64,
        }
    }

    fn pieces() -> (Vec<u8>, Vec<u8>) {
        ((0..CHUNK_BYTES).map(|i| (i * 31 % 251) as u8).collect(), vec![7; 100])
    }

    fn written(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("model.packed");
        let (first, second) = pieces();
        write_packed(&path, &identity(), &[&first, &second], 64).unwrap();
        path
    }

    /// Whether the data at `path` is used, or why not.
    fn read(path: &Path, identity: &PackedIdentity) -> Result<Vec<u8>, String> {
        let file = PackedFile::open(path, identity).map_err(|flaw| flaw.to_string())?;
        let mut data = vec![0; identity.data_bytes as usize];
        for (index, chunk) in data.chunks_mut(CHUNK_BYTES).enumerate() {
            let is_good = file.copy_chunk(index, chunk);
            assert_eq!(file.check_chunk(index), is_good, "in place as in the copy");
            if !is_good {
                return Err(format!("chunk {index} is wrong"));
            }
        }
        assert!(file.data() == data, "in place as in the copy");
        file.release(0..data.len());
        assert!(file.data() == data, "what was let go of comes back");
        Ok(data)
    }

    #[test]
    fn what_was_kept_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder);
        let (mut expected, second) = pieces();
        expected.extend(second);
        expected.resize(CHUNK_BYTES + 128, 0);
        assert_eq!(read(&path, &identity()).unwrap(), expected);
        // Written again over the old one; nothing else is left in the folder.
        written(&folder);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let absent = read(&folder.path().join("other"), &identity()).unwrap_err();
        assert_eq!(absent, "there is none");
    }

    #[test]
    fn another_identity_is_stale_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(&folder);
        let check = |change: &dyn Fn(&mut PackedIdentity), named: &str| {
            let mut other = identity();
            change(&mut other);
            let said = read(&path, &other).unwrap_err();
            assert!(said.contains("stale") && said.contains(named), "{said}");
        };
        check(&|other| other.source.file_bytes += 1, "length");
        check(&|other| other.source.modified += 1, "changed");
        check(&|other| other.source.head_checksum += 1, "settings");
        check(&|other| other.plan += 1, "laid out");
        check(&|other| other.data_bytes += 64, "space");
        check(&|other| other.layout = "test 2".to_owned(), "instruction set");
        check(&|other| other.layout.push_str(" and more"), "instruction set");
    }

    #[test]
    fn no_damage_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let good = fs::read(written(&folder)).unwrap();
        let path = folder.path().join("damaged");
        // One changed bit anywhere: in the head, the data, the table and the last checksum.
        let places = (0..HEAD_BYTES).step_by(13).chain((HEAD_BYTES..good.len()).step_by(4999));
        for at in places.chain(good.len() - 24..good.len()) {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, bytes).unwrap();
            assert!(read(&path, &identity()).is_err(), "a changed byte {at} was believed");
        }
        for length in [0, 1, 8, HEAD_BYTES - 1, HEAD_BYTES, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..length]).unwrap();
            assert!(read(&path, &identity()).is_err(), "a file cut to {length} was believed");
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(read(&path, &identity()).is_err(), "a longer file was believed");
        // Sizes that overflow are refused, too.
        let huge = PackedIdentity { data_bytes: u64::MAX - 7, ..identity() };
        let mut bytes = good;
        bytes[..HEAD_BYTES].copy_from_slice(&write_head(&huge).unwrap());
        fs::write(&path, bytes).unwrap();
        assert!(PackedFile::open(&path, &huge).is_err());
    }

    /// Written over by a rename, a device of the system would be a file from then on.
    #[cfg(unix)]
    #[test]
    fn only_files_are_replaced() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let identity = PackedIdentity { data_bytes: 64, ..identity() };
        let write = |path: &Path| write_packed(path, &identity, &[&[1; 64]], 64);
        let pipe = folder.path().join("pipe");
        let kind = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind.0, kind.1, 0).unwrap();
        // Nobody writes to the pipe: whoever opened it would wait.
        let refused = |path: &Path| {
            assert_eq!(write(path).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
            let flaw = PackedFile::open(path, &identity).unwrap_err().to_string();
            assert!(flaw.contains("it is no regular file"), "{flaw}");
        };
        refused(&pipe);
        assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
        refused(folder.path());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        refused(&link);
        // An empty file, which `mktemp` makes, may be replaced, and by the name of a link, too.
        let (empty, link) = (folder.path().join("empty"), folder.path().join("other"));
        fs::write(&empty, "").unwrap();
        let flaw = PackedFile::open(&empty, &identity).unwrap_err().to_string();
        assert!(flaw.ends_with("it is empty"), "{flaw}");
        std::os::unix::fs::symlink(&empty, &link).unwrap();
        write(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(PackedFile::open(&empty, &identity).is_ok());
    }

    #[test]
    fn what_a_process_left_is_replaced_and_what_it_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.packed");
        let partial = temporary_name(&path);
        fs::write(&partial, MAGIC).unwrap();
        written(&folder);
        assert!(!partial.exists(), "what was left of another start");
        let held = create_alone(&partial).unwrap();
        let error = write_packed(&path, &identity(), &[], 64).unwrap_err();
        assert!(error.to_string().contains("another process's"), "{error}");
        assert!(partial.exists());
        drop(held);
        written(&folder);
        fs::write(&partial, "somebody's notes").unwrap();
        assert!(write_packed(&path, &identity(), &[], 64).is_err());
        assert!(partial.exists());
    }

    #[test]
    fn failed_writing_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.packed");
        let (first, _) = pieces();
        assert!(write_packed(&path, &identity(), &[&first], 64).is_err(), "too little data");
        let long = PackedIdentity { layout: "x".repeat(300), ..identity() };
        assert!(write_packed(&path, &long, &[], 64).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let model = folder.path().join("model.gguf");
        fs::write(&model, b"GGUF and more").unwrap();
        let (first, second) = pieces();
        let error = write_packed(&model, &identity(), &[&first, &second], 64).unwrap_err();
        assert!(error.to_string().contains("not replaced"), "{error}");
        assert_eq!(fs::read(&model).unwrap(), b"GGUF and more");
        assert!(write_packed(&folder.path().join("no/folder"), &identity(), &[], 64).is_err());
    }
}
