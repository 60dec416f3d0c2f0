//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use regex::Regex;
use saccade::config::WeightDtype;
use saccade::engine::{DeviceChoice, Placement};
use saccade::onnx::Provider;
use saccade_convert::random::Shape;

/// Turns checkpoints into Saccade bundles and reports what the conversion cost.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Converts a checkpoint into a bundle folder
    Convert {
        /// A folder of the hub's layout, a .gguf file, or the .safetensors file that saccade-train wrote
        checkpoint: PathBuf,
        /// The bundle folder to make
        out: PathBuf,
        /// How linear layers are stored
        #[arg(long, value_enum, default_value = "int8")]
        dtype: DtypeArg,
        /// Give every layer its activations in one INT8 part: faster, further from the float model
        #[arg(long)]
        one_part: bool,
        /// Keep the linear layers float (F16) whose names, such as layers.0.ffn.down, match; may be given more than once
        #[arg(long, value_name = "REGEX")]
        keep_float: Vec<Regex>,
        /// An ONNX graph that reads pictures in place of our kernels (Janus, Chameleon); needs the feature `onnx`
        #[arg(long, value_name = "FILE")]
        vision_graph: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
        /// Check the checkpoint and print the plan, write nothing
        #[arg(long)]
        dry_run: bool,
        /// Replace OUT if it is a bundle
        #[arg(long)]
        force: bool,
    },
    /// Makes an INT8 bundle of random weights, of a size that benches compare engines at
    Random {
        /// 49, 304 or 1,443 million parameters
        shape: ShapeArg,
        /// The bundle folder to make
        out: PathBuf,
    },
    /// Shows what a bundle holds
    Inspect {
        /// The bundle folder
        bundle: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Checks every hash and rule of a bundle folder, or the rules of one .safetensors or .gguf file
    Verify {
        /// The bundle folder, .safetensors file or .gguf file
        path: PathBuf,
    },
    /// Runs stored inputs and compares with what another implementation computed; exit code 1 when they differ too much
    Golden {
        /// The bundle folder, or a checkpoint that is converted for the occasion
        model: PathBuf,
        /// The .safetensors file with inputs and outputs
        #[arg(long, value_name = "FILE")]
        golden: PathBuf,
        /// How linear layers are stored
        #[arg(long, value_enum, default_value = "f32")]
        precision: DtypeArg,
        /// An ONNX graph to put to a checkpoint; it is compared with our kernels, as that of a bundle is
        #[arg(long, value_name = "FILE")]
        vision_graph: Option<PathBuf>,
        /// What runs the graph: cpu, cuda or tensorrt
        #[arg(long, value_name = "NAME")]
        provider: Option<Provider>,
        /// What runs the model: cpu, or cuda (in a build with that feature)
        #[arg(long, value_name = "NAME", default_value = "cpu")]
        device: DeviceChoice,
        /// The folder of compiled CUDA kernels; for developers, nvrtc or nvrtc:LIBRARY compiles them now
        #[arg(long, value_name = "DIR")]
        kernels: Option<PathBuf>,
        /// Where the card finds the weights: mapped (the file's own pages), device (copied), or auto
        #[arg(long, value_name = "NAME", default_value = "auto")]
        weights: Placement,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Measures how far a bundle is from its float checkpoint, on held-out episodes or on text and pictures of yours
    Compare {
        /// The bundle folder
        bundle: PathBuf,
        /// The checkpoint that the bundle was converted from, or an F32 bundle of it
        #[arg(long)]
        reference: PathBuf,
        /// The folder of held-out episodes (for Saccade's own family)
        #[arg(long, default_value = "examples/heldout")]
        data: PathBuf,
        /// A file of plain text (for published families); may be given several times
        #[arg(long, value_name = "FILE", num_args = 1..)]
        text: Vec<PathBuf>,
        /// A PNG or JPEG file, put before the beginning of a text; may be given several times
        #[arg(long, value_name = "FILE", num_args = 1..)]
        image: Vec<PathBuf>,
        /// Tokens of text that are seen together, of which the second half is scored [default: 512, or what the model takes]
        #[arg(long, value_name = "TOKENS")]
        window: Option<usize>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// As [`Shape`], for the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "verbatim")]
pub(crate) enum ShapeArg {
    S,
    M,
    L,
}

impl From<ShapeArg> for Shape {
    fn from(shape: ShapeArg) -> Self {
        match shape {
            ShapeArg::S => Self::S,
            ShapeArg::M => Self::M,
            ShapeArg::L => Self::L,
        }
    }
}

/// As [`WeightDtype`], for the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DtypeArg {
    /// INT8 tiles, a scale per row: what boards run
    Int8,
    /// Half precision rows
    F16,
    /// Single precision throughout: the reference
    F32,
}

impl From<DtypeArg> for WeightDtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::Int8 => Self::Int8,
            DtypeArg::F16 => Self::F16,
            DtypeArg::F32 => Self::F32,
        }
    }
}
