//! Where the values of a checkpoint's tensors lie, under the names that a bundle gives them, and how they are read: one tensor at a
//! time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use saccade::family::TensorSpec;
use saccade::format::Dtype;

use crate::error::{ConvertError, Result, io};
use crate::gguf::{GgmlType, dequantise, supported};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// One by one, as safetensors has them.
    Plain(Dtype),
    /// As GGUF has them, most in blocks with scales of their own.
    Ggml(GgmlType),
}

/// In which order the rows of a query or key projection, or the values of its bias, lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// As the runtime wants them: the two halves of a head are the two parts of its rotary pairs.
    AsTheyAre,
    /// Rotary pairs side by side, as llama.cpp's converter leaves them.
    Interleaved {
        /// Heads of the projection.
        heads: usize,
    },
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its name in the file.
    pub name: String,
    /// Which of the files.
    pub file: usize,
    /// Where it starts there.
    ///
    /// Units: bytes.
    pub offset: u64,
    /// Its length.
    ///
    /// Units: bytes.
    pub bytes: u64,
    /// Its shape, outermost first.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub elements: Elements,
    /// The order of its rows.
    pub rows: Rows,
}

/// The files of a checkpoint and what lies in them.
#[derive(Debug, Default)]
pub struct Values {
    files: Vec<(PathBuf, Option<File>)>,
    /// By the name in the bundle.
    origins: BTreeMap<String, Origin>,
}

impl Values {
    /// Adds a file; returns its index.
    pub fn add_file(&mut self, path: &Path) -> usize {
        self.files.push((path.into(), None));
        self.files.len() - 1
    }

    /// Adds a tensor under its name in the bundle.
    ///
    /// # Errors
    /// If there is one of that name already.
    pub fn add(&mut self, name: String, origin: Origin) -> Result<()> {
        let (path, theirs) = (self.path_of(&origin).to_owned(), origin.name.clone());
        match self.origins.insert(name, origin) {
            None => Ok(()),
            Some(other) => Err(ConvertError::Tensor {
                path,
                name: theirs,
                reason: format!("it is the same layer as `{}`; remove one of the two", other.name),
            }),
        }
    }

    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Where everything lies, as a text that differs where that differs.
    pub(crate) fn layout(&self) -> String {
        format!("{:?}", self.origins)
    }

    /// Every tensor that the model implies, in a shape and a type that can be read, and no other.
    ///
    /// # Errors
    /// [`ConvertError::Tensor`] with the first that does not fit; `again` says what to do when one is missing or too many.
    pub fn check(&self, at: &Path, specs: &[TensorSpec], again: &str) -> Result<()> {
        for spec in specs {
            let refuse = |path: &Path, reason| refuse(path, &spec.name, reason);
            let Some(origin) = self.origins.get(&spec.name) else {
                return Err(refuse(at, format!("it is missing; {again}")));
            };
            let path = self.path_of(origin);
            if origin.shape != spec.shape {
                let reason =
                    format!("shape {:?} does not match the model's {:?}; {again}", origin.shape, spec.shape);
                return Err(refuse(path, reason));
            }
            match origin.elements {
                Elements::Plain(Dtype::F32 | Dtype::F16 | Dtype::BF16) => {}
                Elements::Plain(dtype) => {
                    return Err(refuse(
                        path,
                        format!("dtype {dtype} cannot be converted; export it as F16 or F32"),
                    ));
                }
                Elements::Ggml(dtype) if supported().contains(&dtype) => {}
                Elements::Ggml(dtype) => {
                    let known: Vec<_> = supported().iter().map(|dtype| format!("{dtype:?}")).collect();
                    let known = known.join(", ");
                    return Err(refuse(
                        path,
                        format!("type {dtype:?} cannot be converted; take a file of {known}"),
                    ));
                }
            }
        }
        match self.origins.iter().find(|(name, _)| !specs.iter().any(|spec| spec.name == **name)) {
            Some((_, origin)) => Err(ConvertError::Tensor {
                path: self.path_of(origin).into(),
                name: origin.name.clone(),
                reason: format!("it does not belong to this model; {again}"),
            }),
            None => Ok(()),
        }
    }

    /// The values of a tensor as F32, in the order of its shape.
    ///
    /// Shapes: `spec.shape`, row-major.
    ///
    /// # Errors
    /// [`ConvertError::Io`] when it cannot be read, [`ConvertError::Tensor`] when it is not there, or a value is infinite or no number.
    pub fn read(&mut self, spec: &TensorSpec) -> Result<Vec<f32>> {
        let Self { files, origins } = self;
        let Some(origin) = origins.get(&spec.name) else {
            let path = files.first().map_or_else(PathBuf::new, |(path, _)| path.clone());
            return Err(refuse(&path, &spec.name, "it is missing; export the checkpoint again".into()));
        };
        let (path, file) = &mut files[origin.file];
        let path = &*path;
        let file = match file {
            Some(file) => file,
            closed => closed.insert(File::open(path).map_err(io(path))?),
        };
        let mut bytes = vec![0; usize::try_from(origin.bytes).unwrap_or(usize::MAX)];
        file.seek(SeekFrom::Start(origin.offset)).map_err(io(path))?;
        file.read_exact(&mut bytes).map_err(io(path))?;
        let values = match origin.elements {
            Elements::Plain(dtype) => plain(dtype, &bytes),
            Elements::Ggml(dtype) => dequantise(dtype, &bytes),
        };
        let values = values.filter(|values| values.len() == spec.parameters());
        let values = values.ok_or_else(|| {
            refuse(path, &origin.name, "its bytes are not what its shape and type say".into())
        })?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let reason =
                format!("value {at} is {}; the training diverged, take an earlier checkpoint", values[at]);
            return Err(refuse(path, &origin.name, reason));
        }
        Ok(match origin.rows {
            Rows::AsTheyAre => values,
            Rows::Interleaved { heads } => halves(&values, heads, spec.shape[0]),
        })
    }

    fn path_of(&self, origin: &Origin) -> &Path {
        &self.files[origin.file].0
    }
}

fn refuse(path: &Path, name: &str, reason: String) -> ConvertError {
    ConvertError::Tensor { path: path.into(), name: name.into(), reason }
}

fn plain(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|&v| f16::from_le_bytes(v).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|&v| bf16::from_le_bytes(v).to_f32()).collect(),
        _ => return None,
    })
}

/// `n` rows of rotary pairs side by side, `(head, pair, 2)`, into rows of halves, `(head, 2, pair)`; a bias has rows of one value.
///
/// Source: the inverse of `permute` in llama.cpp's `convert_hf_to_gguf.py`.
fn halves(values: &[f32], heads: usize, n: usize) -> Vec<f32> {
    let (head_dim, k) = (n / heads, values.len() / n);
    let mut turned = Vec::with_capacity(values.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_dim / 2 {
                let row = head * head_dim + 2 * pair + half;
                turned.extend_from_slice(&values[row * k..][..k]);
            }
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves() {
        // Two heads of four rows of one value: pairs (0, 1), (2, 3).
        let values = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0];
        assert_eq!(halves(&values, 2, 8), [0.0, 2.0, 1.0, 3.0, 10.0, 12.0, 11.0, 13.0]);
        assert_eq!(halves(&[0.0, 5.0, 1.0, 6.0], 1, 2), [0.0, 5.0, 1.0, 6.0], "one pair stays");
    }
}
