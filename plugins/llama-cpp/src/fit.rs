//! What fits where: the cache of a session, and layers on accelerators.

use drophammer_formats::Source;
use drophammer_sdk::{BackendError, ErrorCode, JobContext, Result};

use crate::check::Checked;
use crate::ffi::context::Stored;
use crate::ffi::devices::{self, Device, Kind};

/// Share of an accelerator's free memory that weights and caches may take; the rest is for its intermediate results.
const USABLE_TENTHS: u64 = 9;

/// Bytes that keys and values of one token take, layer by layer.
pub(crate) fn cache_per_token(model: &Checked, keys: Stored, values: Stored) -> Vec<u64> {
    if let Some(checkpoint) = &model.checkpoint {
        let layer = |layer: &drophammer_models::description::Layer| {
            let attention = &layer.attention;
            let heads = u64::from(attention.kv_heads);
            match attention.latent {
                // One compressed state beside the rotated part of the key serves all heads.
                Some(latent) => {
                    let rotated = attention.key_width.saturating_sub(latent.plain_width);
                    keys.bytes(u64::from(latent.rank + rotated))
                }
                None => {
                    keys.bytes(heads * u64::from(attention.key_width))
                        + values.bytes(heads * u64::from(attention.value_width))
                }
            }
        };
        return checkpoint.description().layers.iter().map(layer).collect();
    }
    let number = |key: &str| model.number(key).unwrap_or(0);
    let heads = number("attention.head_count").max(1);
    let width = model.number("attention.key_length").unwrap_or(number("embedding_length") / heads);
    let kv_heads = model.number("attention.head_count_kv").unwrap_or(heads);
    let layer = keys.bytes(kv_heads * width) + values.bytes(kv_heads * width);
    vec![layer; number("block_count").min(4096) as usize]
}

/// Refuses a cache that is larger than what the job may use, or than what is free.
///
/// # Errors
/// [`ErrorCode::OutOfResources`] with the figure.
pub(crate) fn check_cache(bytes: u64, what: &str, job: &dyn JobContext) -> Result<()> {
    let allowed = job.budgets().memory_bytes;
    let free = devices::all().iter().find(|device| device.kind == Kind::Cpu).map_or(0, |device| device.free);
    let (limit, of) = match (allowed, free) {
        (0, 0) => return Ok(()),
        (0, free) => (free, "is free"),
        (allowed, 0) => (allowed, "this job may use"),
        (allowed, free) if free < allowed => (free, "is free"),
        (allowed, _) => (allowed, "this job may use"),
    };
    if bytes <= limit {
        return Ok(());
    }
    let message = format!("a cache for {what} takes {bytes} bytes, more than the {limit} that {of}");
    Err(BackendError::new(ErrorCode::OutOfResources, message)
        .with_help("Ask for a shorter context, fewer sequences or kv_type = \"q8_0\", or allow more memory."))
}

/// How many of the last layers fit on an accelerator with so much free memory: `layers` are bytes per layer with its
/// cache, `output` those of everything after the layers, which goes first.
pub(crate) fn layers_that_fit(free: u64, layers: &[u64], output: u64) -> u32 {
    let mut left = (free / 10 * USABLE_TENTHS).saturating_sub(output);
    let mut count = 0;
    for bytes in layers.iter().rev() {
        if *bytes > left {
            break;
        }
        left -= bytes;
        count += 1;
    }
    // The output counts as one more layer, and is only worth its place when all layers are there.
    if count as usize == layers.len() && !layers.is_empty() { count + 1 } else { count }
}

/// Weight bytes per layer, and of everything outside the layers but the token embedding.
pub(crate) fn weights(source: &Source) -> (Vec<u64>, u64) {
    let (mut layers, mut output) = (Vec::new(), 0);
    for tensor in source.tensors() {
        let number =
            tensor.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        match number.filter(|&number| number < 4096) {
            Some(number) => {
                if layers.len() <= number {
                    layers.resize(number + 1, 0);
                }
                layers[number] += tensor.byte_len();
            }
            None if tensor.name.starts_with("token_embd") => {}
            None => output += tensor.byte_len(),
        }
    }
    (layers, output)
}

/// Where a model's layers go.
pub(crate) struct Placement {
    /// The accelerator; `None` for the processor alone.
    pub(crate) device: Option<Device>,
    /// Layers on it.
    pub(crate) gpu_layers: u32,
    /// In words.
    pub(crate) told: String,
}

/// Decides where layers go. `wish` names a device, `layers` overrides what fits.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] for unknown devices; the help lists the known ones.
pub(crate) fn place(
    source: &Source,
    cache_per_layer: &[u64],
    wish: Option<&str>,
    layers: Option<u32>,
) -> Result<Placement> {
    let all = devices::all();
    let chosen = match wish {
        None => all.iter().filter(|device| device.kind == Kind::Gpu).max_by_key(|device| device.free),
        Some(id) => {
            let known =
                all.iter().find(|device| device.id == id.to_lowercase() && device.kind != Kind::Helper);
            Some(known.ok_or_else(|| {
                let ids: Vec<_> = all.iter().map(|device| device.id.as_str()).collect();
                BackendError::new(ErrorCode::InvalidRequest, format!("there is no device {id:?}"))
                    .with_help(format!("Choose one of: {}.", ids.join(", ")))
            })?)
        }
    };
    let Some(device) = chosen.filter(|device| device.kind == Kind::Gpu) else {
        return Ok(Placement { device: None, gpu_layers: 0, told: "all layers on the processor".into() });
    };
    let (weights, output) = weights(source);
    let per_layer: Vec<u64> =
        weights.iter().zip(cache_per_layer.iter().chain(std::iter::repeat(&0))).map(|(w, c)| w + c).collect();
    let fits = layers.unwrap_or_else(|| layers_that_fit(device.free, &per_layer, output));
    let told = format!("{} of {} layers on {}", fits.min(per_layer.len() as u32), per_layer.len(), device.id);
    Ok(Placement { device: Some(device.clone()), gpu_layers: fits, told })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layers_go_first_and_the_output_only_with_all_of_them() {
        assert_eq!(layers_that_fit(1000, &[100; 4], 100), 5); // 900 usable
        assert_eq!(layers_that_fit(500, &[100; 4], 100), 3); // 450 usable, 100 reserved for the output
        assert_eq!(layers_that_fit(100, &[100; 4], 10), 0);
        assert_eq!(layers_that_fit(u64::MAX, &[], 0), 0);
    }
}
