//! Which instruction set runs? Detected once, or forced by name; an `Isa` is the proof.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pairs;
mod portable;

pub(crate) use pairs::PairDots;

use crate::vector::Vector;

/// An instruction set this machine has: only `detect` and `forced` make one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonMatrix,
}

/// A computation written once for every instruction set.
pub(crate) trait Kernel {
    type Output;
    /// # Safety
    /// The instruction set of `V` is present; what else holds is the kernel's own contract.
    unsafe fn run<V: Vector>(self) -> Self::Output;
}

impl Isa {
    /// The best one here.
    pub fn detect() -> Self {
        let names = ["avx512-vnni", "avx2", "neon-i8mm", "neon-dotprod", "neon"];
        let best = names.into_iter().find_map(Self::forced);
        best.unwrap_or(Self(Kind::Portable))
    }

    /// The one called `name`, or `None` if this machine lacks it or the name is unknown.
    pub fn forced(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(Self(Kind::Portable)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => {
                let present = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                present.then_some(Self(Kind::Avx2))
            }
            #[cfg(target_arch = "x86_64")]
            "avx512-vnni" => {
                let present = Self::forced("avx2").is_some()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni");
                present.then_some(Self(Kind::Avx512Vnni))
            }
            #[cfg(target_arch = "aarch64")]
            "neon" => Some(Self(Kind::Neon)),
            #[cfg(target_arch = "aarch64")]
            "neon-dotprod" => {
                let present = std::arch::is_aarch64_feature_detected!("dotprod");
                present.then_some(Self(Kind::NeonDot))
            }
            #[cfg(target_arch = "aarch64")]
            "neon-i8mm" => {
                let present = Self::forced("neon-dotprod").is_some()
                    && std::arch::is_aarch64_feature_detected!("i8mm");
                present.then_some(Self(Kind::NeonMatrix))
            }
            _ => None,
        }
    }

    /// Every one this machine has, the slowest first.
    pub fn all() -> Vec<Self> {
        let names = ["portable", "neon", "neon-dotprod", "neon-i8mm", "avx2", "avx512-vnni"];
        names.into_iter().filter_map(Self::forced).collect()
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonMatrix => "neon-i8mm",
        }
    }

    /// Runs `kernel` compiled for this instruction set.
    ///
    /// # Safety
    /// The kernel's own contract holds.
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: every machine has the portable set; the rest is the caller's promise.
            Kind::Portable => unsafe { kernel.run::<portable::Portable>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `forced` found the features before it made this value.
            Kind::Avx2 => unsafe { avx2::enter(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `forced` found the features before it made this value.
            Kind::Avx512Vnni => unsafe { avx512::enter(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: NEON is part of every aarch64 target of Rust with an operating system.
            Kind::Neon => unsafe { neon::enter(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: `forced` found the feature before it made this value.
            Kind::NeonDot => unsafe { neon::enter_dot(kernel) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: `forced` found the features before it made this value.
            Kind::NeonMatrix => unsafe { neon::enter_matrix(kernel) },
        }
    }
}
