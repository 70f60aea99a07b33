//! Which weights stay in memory whatever else needs it? The backend asks and does; whoever loads
//! the model decides and hears how it went.

/// The rules for one model's weights, and their record.
pub trait Pinning: Sync {
    /// Whether the backend's form of this tensor, of `bytes`, is to be pinned.
    fn wants(&self, name: &str, bytes: u64) -> bool;

    /// It is, until the program goes.
    fn pinned(&self, bytes: u64);

    /// The system refused so many bytes; the weights work as well without.
    fn refused(&self, name: &str, bytes: u64, reason: &std::io::Error);
}
