//! The kernel files, and the architectures that they are compiled for.

/// One `.cu` file.
#[derive(Clone, Copy, Debug)]
pub struct KernelFile {
    /// Its name without the ending.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
    /// The kernels in it.
    pub kernels: &'static [&'static str],
}

/// What a compiled kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Compute capability: 87 for 8.7.
    pub sm: u32,
    /// Who has it.
    pub boards: &'static str,
    /// Whether these are Tegra chips.
    pub tegra: bool,
    /// The major version of the compiler that builds it: 11 so that the drivers of JetPack 5 load it, 13 where 11 does not know it.
    pub compiler: u32,
}

/// Every architecture. Code for `x.y` runs on cards `x.z` with `z ≥ y`, but not from or to a Tegra chip.
///
/// Source: CUDA C++ Programming Guide, "Binary Compatibility": "supported only for the desktop".
pub const ARCHITECTURES: [Architecture; 6] = [
    Architecture { sm: 72, boards: "Xavier", tegra: true, compiler: 11 },
    Architecture { sm: 75, boards: "desktop cards (Turing)", tegra: false, compiler: 11 },
    Architecture { sm: 80, boards: "desktop cards (Ampere, Ada)", tegra: false, compiler: 11 },
    Architecture { sm: 87, boards: "Orin", tegra: true, compiler: 11 },
    Architecture { sm: 90, boards: "data-centre cards (Hopper)", tegra: false, compiler: 11 },
    Architecture { sm: 110, boards: "Thor", tegra: true, compiler: 13 },
];

macro_rules! source {
    ($name:literal: $($kernel:literal),+ $(,)?) => {
        KernelFile { name: $name, text: include_str!(concat!("kernels/", $name, ".cu")), kernels: &[$($kernel),+] }
    };
}

/// Every kernel file. A new one is a line here.
pub const SOURCES: [KernelFile; 20] = [
    source!("attention_f32": "attention_f32"),
    source!("attention_i8": "attention_i8"),
    source!("attention_rows": "attention_i8_rows_4", "attention_i8_rows_8"),
    source!("attention_split": "attention_i8_scores", "attention_i8_values"),
    source!("elementwise": "rms_norm_rows", "silu_multiply", "check_finite", "guide_logits"),
    source!("embed": "embed"),
    source!("gemm_i8": "gemm_i8_32", "gemm_i8_64", "gemm_i8_128"),
    source!("gemv_i8": "gemv_i8_1", "gemv_i8_2", "gemv_i8_4", "gemv_i8_8", "gemv_i8_16", "gemv_f32_1", "gemv_f32_2"),
    source!("peak": "peak_int8"),
    source!("pick": "pick"),
    source!("quantise": "quantise_rows"),
    source!("heads": "store_heads"),
    source!("linear_float": "linear_f32", "linear_f16"),
    source!("convolve": "convolve_f32", "convolve_f16", "convolve_turned"),
    source!("patches_i8": "quantise_patches"),
    source!("group_norm": "strip_sums", "fold_strips", "group_norm"),
    source!("row_norms": "layer_norm", "softmax_rows"),
    source!("maps": "silu_map", "gelu_map", "add_maps", "add_table", "channel_norm", "enlarge_map"),
    source!("pixels": "area_to_map", "resample", "resample_to_map"),
    source!("nearest": "nearest_f32", "nearest_f16"),
];

/// What they include: names and texts.
pub const HEADERS: [(&str, &str); 6] = [
    ("attention.cuh", include_str!("kernels/attention.cuh")),
    ("common.cuh", include_str!("kernels/common.cuh")),
    ("linear.cuh", include_str!("kernels/linear.cuh")),
    ("patch.cuh", include_str!("kernels/patch.cuh")),
    ("rows.cuh", include_str!("kernels/rows.cuh")),
    ("step.cuh", include_str!("kernels/step.cuh")),
];
