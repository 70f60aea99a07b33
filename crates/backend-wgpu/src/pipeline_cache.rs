//! What does the driver keep of compiled kernels? Its own form of them, in a file between starts.
//!
//! Only Vulkan has such a form; Metal and Direct3D keep theirs by themselves. Drivers trust what
//! they are given back, so that a file is used whose bytes are those that were written.

use std::path::PathBuf;

use sha2::{Digest, Sha256};
use wgpu::Features;

use crate::gpu::Gpu;
use crate::kernels::driver_cache;

const DIGEST_BYTES: usize = 32;

pub(crate) struct PipelineCache {
    pub(crate) cache: wgpu::PipelineCache,
    path: PathBuf,
}

impl PipelineCache {
    /// `None` where the driver has no such form, or there is no folder for it.
    pub(crate) fn open(gpu: &Gpu) -> Option<Self> {
        if !gpu.device.features().contains(Features::PIPELINE_CACHE) {
            return None;
        }
        // The name has vendor and device; the driver's version is in the data, which wgpu checks.
        let name = wgpu::util::pipeline_cache_key(&gpu.adapter)?;
        let path = device::kernel_cache::folder()?.join(name);
        let known = std::fs::read(&path).ok().and_then(|file| unsealed(&file).map(<[u8]>::to_vec));
        Some(Self { cache: driver_cache(gpu, known.as_deref()), path })
    }

    /// Keeps all pipelines made until now. What cannot be written costs time at the next start.
    pub(crate) fn keep(&self) {
        if let Some(data) = self.cache.get_data() {
            let _ = device::kernel_cache::keep(&self.path, &sealed(&data));
        }
    }
}

fn sealed(data: &[u8]) -> Vec<u8> {
    let mut file = Sha256::digest(data).to_vec();
    file.extend_from_slice(data);
    file
}

/// `None` where a byte is not what was written.
fn unsealed(file: &[u8]) -> Option<&[u8]> {
    let (digest, data) = file.split_at_checked(DIGEST_BYTES)?;
    (*Sha256::digest(data) == *digest).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_is_given_to_a_driver() {
        let file = sealed(b"pipelines");
        assert_eq!(unsealed(&file), Some(&b"pipelines"[..]));
        for index in 0..file.len() {
            let mut broken = file.clone();
            broken[index] ^= 1;
            assert_eq!(unsealed(&broken), None, "byte {index}");
            assert_eq!(unsealed(&file[..index]), None, "{index} bytes");
        }
    }
}
