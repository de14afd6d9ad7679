//! LoRA: attached to a session, fused while forging, and merged by hand before converting give the same model.

use std::path::Path;

use drophammer_formats::{DType, Source, TensorDecl, safetensors};
use drophammer_sdk::{Backend, ForgeRequest, LoadRequest};
use serde_json::json;

use crate::fixture::{
    JOB, can_run, fixture, forward, largest_difference, load, mlx, order, reference, request,
};

const RANK: usize = 4;
const SCALE: f32 = 2.5;
const MODULES: [(&str, usize, usize); 4] = [
    ("model.layers.0.self_attn.q_proj", 256, 256),
    ("model.layers.1.self_attn.v_proj", 128, 256),
    ("model.layers.2.mlp.down_proj", 256, 768),
    ("model.layers.3.mlp.gate_proj", 768, 256),
];

/// Known numbers.
fn number(module: usize, half: usize, i: usize) -> f32 {
    ((i * 7 + module * 13 + half * 5) as f32 * 0.61).sin() * 0.05
}

fn halves(module: usize) -> [Vec<f32>; 2] {
    let (_, rows, columns) = MODULES[module];
    let half = |half: usize, len: usize| (0..len).map(|i| number(module, half, i)).collect();
    [half(0, columns * RANK), half(1, rows * RANK)]
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The adapter as mlx-lm (`[columns, rank]`, `[rank, rows]`) or Hugging Face stores it.
fn write_adapter(directory: &Path, hugging_face: bool) {
    let config = if hugging_face {
        json!({ "peft_type": "LORA", "r": RANK, "lora_alpha": SCALE * RANK as f32 })
    } else {
        json!({ "fine_tune_type": "lora", "num_layers": 4, "lora_parameters": { "rank": RANK, "scale": SCALE, "dropout": 0.0 } })
    };
    std::fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    for (module, (name, rows, columns)) in MODULES.into_iter().enumerate() {
        let [down, up] = halves(module); // down is [rank, columns], up [rows, rank]
        if hugging_face {
            let decl = |half: &str, shape: [usize; 2]| {
                let name = format!("base_model.model.{name}.lora_{half}.weight");
                TensorDecl::new(name, DType::F32, shape.map(|dim| dim as u64).to_vec())
            };
            tensors.push((decl("A", [RANK, columns]), bytes(&down)));
            tensors.push((decl("B", [rows, RANK]), bytes(&up)));
        } else {
            let transposed = |values: &[f32], width: usize| -> Vec<f32> {
                let height = values.len() / width;
                (0..width).flat_map(|c| (0..height).map(move |r| values[r * width + c])).collect()
            };
            let decl = |half: &str, shape: [usize; 2]| {
                let shape = shape.map(|dim| dim as u64).to_vec();
                TensorDecl::new(format!("{name}.lora_{half}"), DType::F32, shape)
            };
            tensors.push((decl("a", [columns, RANK]), bytes(&transposed(&down, columns))));
            tensors.push((decl("b", [RANK, rows]), bytes(&transposed(&up, RANK))));
        }
    }
    let name = if hugging_face { "adapter_model.safetensors" } else { "adapters.safetensors" };
    let borrowed: Vec<(TensorDecl, &[u8])> =
        tensors.iter().map(|(decl, bytes)| (decl.clone(), bytes.as_slice())).collect();
    safetensors::write(&directory.join(name), &borrowed, &[]).unwrap();
}

/// The base model with the adapter's products added, in float32.
fn write_merged(directory: &Path) {
    let source = Source::open(fixture("shakespeare-llama")).unwrap();
    let mut tensors = Vec::new();
    for tensor in source.tensors() {
        let mut values = vec![0.0; tensor.elements() as usize];
        drophammer_quant::dequantize(tensor.dtype, source.bytes(tensor), &mut values).unwrap();
        let module = MODULES.iter().position(|(name, ..)| tensor.name == format!("{name}.weight"));
        if let Some(module) = module {
            let (_, rows, columns) = MODULES[module];
            let [down, up] = halves(module);
            for row in 0..rows {
                for column in 0..columns {
                    let sum: f32 = (0..RANK).map(|r| up[row * RANK + r] * down[r * columns + column]).sum();
                    values[row * columns + column] += SCALE * sum;
                }
            }
        }
        tensors.push((TensorDecl::new(&tensor.name, DType::F32, tensor.shape.clone()), bytes(&values)));
    }
    let borrowed: Vec<(TensorDecl, &[u8])> =
        tensors.iter().map(|(decl, bytes)| (decl.clone(), bytes.as_slice())).collect();
    safetensors::write(&directory.join("model.safetensors"), &borrowed, &[]).unwrap();
    std::fs::copy(fixture("shakespeare-llama/config.json"), directory.join("config.json")).unwrap();
}

#[test]
fn attached_is_fused_is_merged_and_converted() {
    if !can_run() {
        return;
    }
    let base = fixture("shakespeare-llama");
    let (mut rows, plain) = reference(&base);
    rows[0].truncate(32);
    let [merged, converted] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    write_merged(merged.path());
    mlx().convert(&request(merged.path(), "f32", converted.path()), &JOB).unwrap();
    let due = forward(load(&order(converted.path(), true, 1)).as_mut(), &rows);
    assert!(largest_difference(&due, &plain[..due.len()]) > 0.1, "the adapter changes nothing");
    for hugging_face in [false, true] {
        let [adapter, fused] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        write_adapter(adapter.path(), hugging_face);
        let adapters = vec![adapter.path().to_owned()];
        let attached = LoadRequest { adapters: adapters.clone(), ..order(&base, true, 1) };
        let difference = largest_difference(&forward(load(&attached).as_mut(), &rows), &due);
        assert!(difference <= 1e-3, "attached: {difference}");
        let forge = ForgeRequest { adapters, ..request(&base, "f32", fused.path()) };
        mlx().convert(&forge, &JOB).unwrap();
        let difference =
            largest_difference(&forward(load(&order(fused.path(), true, 1)).as_mut(), &rows), &due);
        assert!(difference <= 1e-3, "fused: {difference}");
    }
}

#[test]
fn an_adapter_attaches_to_a_packed_base_without_unpacking_it() {
    if !can_run() {
        return;
    }
    let source = fixture("shakespeare-llama");
    let (mut rows, _) = reference(&source);
    rows[0].truncate(16);
    let [adapter, base] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    write_adapter(adapter.path(), false);
    mlx().quantize(&request(&source, "affine_8_g32", base.path()), &JOB).unwrap();
    let adapters = vec![adapter.path().to_owned()];
    let packed = LoadRequest { adapters: adapters.clone(), ..order(base.path(), true, 1) };
    let plain = LoadRequest { adapters, ..order(&source, true, 1) };
    let [packed, plain] = [packed, plain].map(|request| forward(load(&request).as_mut(), &rows));
    let difference = largest_difference(&packed, &plain);
    assert!(difference > 0.0 && difference < 0.5, "{difference}");
}
