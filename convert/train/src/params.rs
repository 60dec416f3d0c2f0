//! Named parameters, the optimiser over them, and the training checkpoint: one safetensors file under the names of the shipped one.
//!
//! Parameters are kept as matrices (`[out, in]`; a vector is `[1, n]`, a convolution `[out, in·kh·kw]`), because every
//! place that touches all of them (optimiser, fake quantisation, export) then needs one case instead of four.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{FloatDType, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::ops::Fused;

/// One parameter with its optimiser state.
struct Param<B: Backend> {
    shape: Vec<usize>,
    rule: Rule,
    value: Tensor<B, 2>,
    /// Mean of the gradients, and of their squares where the rule wants that.
    moments: [Option<Tensor<B, 2>>; 2],
}

/// How a parameter is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// AdamW without decay: tables, norms, biases, convolutions.
    Adam,
    /// Muon with decay: the matrices of the transformer. The step is the momentum with all singular values brought to
    /// about one, scaled to the root mean square of an AdamW step.
    ///
    /// Source: Jordan et al. 2024 (Muon), with the scale of Liu et al. 2025 (arXiv:2502.16982).
    Muon,
}

/// All parameters of a model, by the names of the shipped checkpoint.
pub struct Params<B: AutodiffBackend> {
    device: B::Device,
    map: BTreeMap<String, Param<B::InnerBackend>>,
}

/// The parameters as leaves of one step's graph.
pub struct Leaves<B: Backend> {
    map: HashMap<String, Tensor<B, 2>>,
}

impl<B: Backend> Leaves<B> {
    /// The matrix of this name.
    ///
    /// # Panics
    /// If the model asks for a name that it never declared.
    pub fn get(&self, name: &str) -> Tensor<B, 2> {
        self.map.get(name).cloned().unwrap_or_else(|| panic!("the model declares no parameter `{name}`"))
    }

    /// The vector of this name.
    pub fn vector(&self, name: &str) -> Tensor<B, 1> {
        let t = self.get(name);
        let n = t.dims()[1];
        t.reshape([n])
    }
}

/// Settings of the optimiser.
#[derive(Debug, Clone, Copy)]
pub struct Optimiser {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Momentum of Muon.
    pub momentum: f64,
    /// Weight decay, on matrices only.
    pub weight_decay: f64,
    /// Largest global gradient norm.
    pub clip: f64,
}

impl Default for Optimiser {
    fn default() -> Self {
        Optimiser { beta1: 0.9, beta2: 0.98, momentum: 0.95, weight_decay: 0.05, clip: 1.0 }
    }
}

/// The two dimensions under which a shape is kept.
fn matrix(shape: &[usize]) -> [usize; 2] {
    match shape {
        [n] => [1, *n],
        [out, rest @ ..] => [*out, rest.iter().product()],
        [] => [1, 1],
    }
}

impl<B: AutodiffBackend> Params<B> {
    /// No parameters yet.
    pub fn new(device: &B::Device) -> Self {
        Params { device: device.clone(), map: BTreeMap::new() }
    }

    /// Declares a parameter and the rule that moves it.
    ///
    /// # Panics
    /// If `values` does not fill `shape`.
    pub fn declare(&mut self, name: impl Into<String>, shape: &[usize], rule: Rule, values: Vec<f32>) {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "values fill the declared shape");
        let value = Tensor::from_data(TensorData::new(values, matrix(shape)), &self.device);
        self.map.insert(name.into(), Param { shape: shape.to_vec(), rule, value, moments: [None, None] });
    }

    /// The device that holds the parameters.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// How many numbers the model has.
    pub fn count(&self) -> usize {
        self.map.values().map(|p| p.shape.iter().product::<usize>()).sum()
    }

    /// Fresh leaves for one step.
    pub fn leaves(&self) -> Leaves<B> {
        let leaf = |p: &Param<B::InnerBackend>| Tensor::from_inner(p.value.clone()).require_grad();
        Leaves { map: self.map.iter().map(|(n, p)| (n.clone(), leaf(p))).collect() }
    }

    /// The parameters without a graph.
    pub fn frozen(&self) -> Leaves<B::InnerBackend> {
        Leaves { map: self.map.iter().map(|(n, p)| (n.clone(), p.value.clone())).collect() }
    }

    /// Name, shape and values of every parameter, in name order.
    pub fn export(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        self.map.iter().map(|(n, p)| (n.clone(), p.shape.clone(), host(&p.value))).collect()
    }

    /// Replaces the values of one parameter.
    ///
    /// # Errors
    /// If the name or the number of values is not the model's.
    pub fn set(&mut self, name: &str, values: Vec<f32>) -> Result<()> {
        let device = self.device.clone();
        let p = self
            .map
            .get_mut(name)
            .ok_or_else(|| Error::Setting(format!("the model has no parameter `{name}`")))?;
        if values.len() != p.shape.iter().product::<usize>() {
            return Err(Error::Setting(format!(
                "parameter `{name}` has shape {:?}, not {} values",
                p.shape,
                values.len()
            )));
        }
        p.value = Tensor::from_data(TensorData::new(values, matrix(&p.shape)), &device);
        Ok(())
    }

    /// Writes values, moments and `meta` to `path`, first beside it as `.part`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path, meta: HashMap<String, String>) -> Result<()> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, p) in &self.map {
            tensors.push((name.clone(), p.shape.clone(), bytes(&host(&p.value))));
            for (moment, suffix) in p.moments.iter().zip(["m", "v"]) {
                if let Some(moment) = moment {
                    tensors.push((format!("{name}.{suffix}"), p.shape.clone(), bytes(&host(moment))));
                }
            }
        }
        write_f32(path, &tensors, meta)
    }

    /// Reads what [`Params::save`] wrote and returns its `meta`; every declared parameter must be there.
    ///
    /// # Errors
    /// If the file is missing, broken, or of another model.
    pub fn load(&mut self, path: &Path) -> Result<HashMap<String, String>> {
        let raw = std::fs::read(path).map_err(Error::file(path))?;
        let (_, header) =
            SafeTensors::read_metadata(&raw).map_err(|e| Error::content(path, e.to_string()))?;
        let file = SafeTensors::deserialize(&raw).map_err(|e| Error::content(path, e.to_string()))?;
        let read = |name: &str,
                    shape: &[usize],
                    device: &B::Device|
         -> Result<Option<Tensor<B::InnerBackend, 2>>> {
            let Ok(view) = file.tensor(name) else { return Ok(None) };
            if view.shape() != shape || view.dtype() != Dtype::F32 {
                let what = format!(
                    "tensor `{name}` is {:?} {:?}, this model wants F32 {shape:?}",
                    view.dtype(),
                    view.shape()
                );
                return Err(Error::content(path, what));
            }
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            Ok(Some(Tensor::from_data(TensorData::new(values, matrix(shape)), device)))
        };
        for (name, p) in &mut self.map {
            p.value = read(name, &p.shape, &self.device)?.ok_or_else(|| {
                Error::content(path, format!("tensor `{name}` is missing; train this stage again"))
            })?;
            let m = read(&format!("{name}.m"), &p.shape, &self.device)?;
            let v = read(&format!("{name}.v"), &p.shape, &self.device)?;
            p.moments = [m, v];
        }
        Ok(header.metadata().clone().unwrap_or_default())
    }

    /// Forgets the moments, for a stage that starts afresh from these values.
    pub fn reset_moments(&mut self) {
        for p in self.map.values_mut() {
            p.moments = [None, None];
        }
    }
}

impl<B: AutodiffBackend> Params<B>
where
    B::InnerBackend: Fused,
{
    /// One step of the optimiser with global norm clipping; returns the norm before clipping.
    ///
    /// `step` counts from 1. A step whose gradient is not finite changes nothing and returns the norm all the same.
    pub fn update(
        &mut self,
        leaves: &Leaves<B>,
        grads: &mut B::Gradients,
        lr: f64,
        step: usize,
        opt: &Optimiser,
    ) -> f64 {
        let mut found = Vec::new();
        let mut square: Option<Tensor<B::InnerBackend, 1>> = None;
        for name in self.map.keys() {
            let Some(grad) = leaves.map[name].grad_remove(grads) else { continue };
            let s = grad.clone().powf_scalar(2.0).sum();
            square = Some(match square {
                Some(sum) => sum + s,
                None => s,
            });
            found.push((name.clone(), grad));
        }
        let Some(square) = square else { return 0.0 };
        let norm = f64::from(square.into_scalar_f32()).sqrt();
        if !norm.is_finite() {
            return norm;
        }
        let shrink = (opt.clip / (norm + 1e-6)).min(1.0);
        let c1 = 1.0 - opt.beta1.powi(i32::try_from(step).unwrap_or(i32::MAX));
        let c2 = 1.0 - opt.beta2.powi(i32::try_from(step).unwrap_or(i32::MAX));
        for (name, grad) in found {
            let Some(p) = self.map.get_mut(&name) else { continue };
            let grad = grad.mul_scalar(shrink);
            let [m, v] = std::mem::take(&mut p.moments);
            let mean = |old: Option<Tensor<_, 2>>, new: Tensor<B::InnerBackend, 2>, beta: f64| match old {
                Some(old) => old.mul_scalar(beta) + new.mul_scalar(1.0 - beta),
                None => new.mul_scalar(1.0 - beta),
            };
            match p.rule {
                Rule::Adam => {
                    let m = mean(m, grad.clone(), opt.beta1);
                    let v = mean(v, grad.clone() * grad, opt.beta2);
                    let delta =
                        m.clone().mul_scalar(1.0 / c1) / (v.clone().mul_scalar(1.0 / c2).sqrt() + 1e-8);
                    p.value = p.value.clone() - delta.mul_scalar(lr);
                    p.moments = [Some(m), Some(v)];
                }
                Rule::Muon => {
                    let m = mean(m, grad.clone(), opt.momentum);
                    let ahead = m.clone().mul_scalar(opt.momentum) + grad.mul_scalar(1.0 - opt.momentum);
                    let [out, inp] = ahead.dims();
                    let scale = 0.2 * (out.max(inp) as f64).sqrt();
                    let delta = orthogonal(ahead).mul_scalar(scale * lr);
                    p.value = p.value.clone().mul_scalar(1.0 - lr * opt.weight_decay) - delta;
                    p.moments = [Some(m), None];
                }
            }
        }
        norm
    }
}

/// The nearest matrix with singular values of about one, by five Newton–Schulz steps.
fn orthogonal<B: Fused>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let [rows, columns] = x.dims();
    let tall = rows > columns;
    let x = if tall { x.transpose() } else { x };
    let norm = x.clone().powf_scalar(2.0).sum().sqrt().add_scalar(1e-7).reshape([1, 1]);
    let low = if B::BF16 { FloatDType::BF16 } else { FloatDType::F32 };
    let mut x = (x / norm).cast(low);
    for _ in 0..5 {
        let a = x.clone().matmul(x.clone().transpose());
        let b = a.clone().mul_scalar(-4.7750) + a.clone().matmul(a).mul_scalar(2.0315);
        x = x.clone().mul_scalar(3.4445) + b.matmul(x);
    }
    let x = x.cast(FloatDType::F32);
    if tall { x.transpose() } else { x }
}

/// A scalar on the host, whatever the backend calls it.
pub trait ScalarF32 {
    /// The one element as `f32`.
    fn into_scalar_f32(self) -> f32;
}

impl<B: Backend, const D: usize> ScalarF32 for Tensor<B, D> {
    fn into_scalar_f32(self) -> f32 {
        self.into_data().iter::<f32>().next().unwrap_or(f32::NAN)
    }
}

/// The elements on the host.
pub fn host<B: Backend, const D: usize>(t: &Tensor<B, D>) -> Vec<f32> {
    t.clone().into_data().iter::<f32>().collect()
}

/// Little-endian bytes of `values`.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes F32 tensors as safetensors, whole or not at all.
fn write_f32(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<u8>)],
    meta: HashMap<String, String>,
) -> Result<()> {
    let views = tensors
        .iter()
        .map(|(n, s, b)| Ok((n.clone(), TensorView::new(Dtype::F32, s.clone(), b)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| Error::content(path, e.to_string()))?;
    let raw = safetensors::serialize(views, Some(meta)).map_err(|e| Error::content(path, e.to_string()))?;
    write_whole(path, &raw)
}

/// Writes `raw` beside `path` as `.part`, then renames it.
///
/// # Errors
/// If the folder cannot be written.
pub fn write_whole(path: &Path, raw: &[u8]) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = std::path::PathBuf::from(part);
    std::fs::write(&part, raw).map_err(Error::file(&part))?;
    std::fs::rename(&part, path).map_err(Error::file(path))
}
