//! Limits on what a registry can make this node store, each with its reason. The defaults are far above every
//! image seen in use; they bound what a hostile one costs.

/// Layers of one image. Overlayfs stacks at most 500 lower directories (`OVL_MAX_STACK`).
pub const MAX_LAYERS: usize = 500;
/// Bytes of a manifest or index: the distribution specification lets registries refuse more than 4 MiB.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Bytes of an image configuration; histories of machine-made images reach some 100 KiB.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Bytes of one layer's archive: model and z/OS product layers reach tens of GiB.
pub const MAX_LAYER_BYTES: u64 = 128 << 30;
/// Bytes of a layer's archive for each compressed byte, once it is larger than [`RATIO_FLOOR`]: deflate ends at
/// 1032, real layers stay below 20 or are small.
pub const MAX_RATIO: u64 = 200;
/// An archive below this size may be compressed as well as it can be.
pub const RATIO_FLOOR: u64 = 1 << 30;
/// Entries of one layer: distributions with everything installed have some 500,000 files.
pub const MAX_ENTRIES: u64 = 5_000_000;
/// Bytes of a path or link target, PATH_MAX of Linux.
pub const MAX_PATH_BYTES: usize = 4096;
/// Bytes of the extended attributes and other PAX records of one entry: Linux takes 64 KiB for one attribute.
pub const MAX_PAX_BYTES: usize = 1 << 20;
/// Bytes of directory names of one layer that are kept in memory for setting times at the end.
pub const MAX_DIRECTORY_BYTES: usize = 256 << 20;
/// Indexes within indexes.
pub const MAX_INDEX_DEPTH: usize = 3;
/// Largest zstd window, as a power of two: 128 MiB, what the zstd tool accepts by default.
pub const MAX_ZSTD_WINDOW_LOG: u32 = 27;
/// Layers of one pull that are fetched and unpacked at a time: each takes two threads and some 4 MiB.
pub const LAYERS_PER_PULL: usize = 4;
/// Layers of all pulls at a time.
pub const LAYERS_TOTAL: usize = 12;

/// The limits that a configuration or a test may want otherwise.
#[derive(Debug, Clone)]
pub struct Limits {
    /// See [`MAX_LAYERS`].
    pub layers: usize,
    /// See [`MAX_MANIFEST_BYTES`].
    pub manifest_bytes: u64,
    /// See [`MAX_CONFIG_BYTES`].
    pub config_bytes: u64,
    /// See [`MAX_LAYER_BYTES`].
    pub layer_bytes: u64,
    /// See [`MAX_RATIO`].
    pub ratio: u64,
    /// See [`RATIO_FLOOR`].
    pub ratio_floor: u64,
    /// See [`MAX_ENTRIES`].
    pub entries: u64,
    /// See [`LAYERS_PER_PULL`].
    pub layers_per_pull: usize,
    /// See [`LAYERS_TOTAL`].
    pub layers_total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: MAX_LAYERS,
            manifest_bytes: MAX_MANIFEST_BYTES,
            config_bytes: MAX_CONFIG_BYTES,
            layer_bytes: MAX_LAYER_BYTES,
            ratio: MAX_RATIO,
            ratio_floor: RATIO_FLOOR,
            entries: MAX_ENTRIES,
            layers_per_pull: LAYERS_PER_PULL,
            layers_total: LAYERS_TOTAL,
        }
    }
}

impl Limits {
    /// Bytes that a layer of `compressed` bytes may unpack to.
    pub(crate) fn unpacked(&self, compressed: u64) -> u64 {
        compressed
            .saturating_mul(self.ratio)
            .max(self.ratio_floor)
            .min(self.layer_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_bounded_by_ratio_and_size() {
        let limits = Limits::default();
        assert_eq!(limits.unpacked(0), RATIO_FLOOR);
        assert_eq!(limits.unpacked(100 << 20), (100 << 20) * MAX_RATIO);
        assert_eq!(limits.unpacked(u64::MAX), MAX_LAYER_BYTES);
    }
}
