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

/// Refuses a cache of the processor that is larger than what the job may use, or than what is free there.
///
/// # Errors
/// [`ErrorCode::OutOfResources`] with the figure.
pub(crate) fn check_cache(bytes: u64, free: u64, what: &str, job: &dyn JobContext) -> Result<()> {
    let allowed = job.budgets().memory_bytes;
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

/// What to ask of llama.cpp for an accelerator with so much free memory: `layers` are bytes per layer with its cache, `output`
/// those of everything after the layers. It counts from the end, with the output as one layer more: 1 is the output alone.
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
    // The output alone is not worth the way there.
    if count == 0 { 0 } else { count + 1 }
}

/// Weight bytes per layer, and of everything outside the layers. The token embedding stays with the processor, but a copy of
/// it goes where the output is computed if that has no matrix of its own.
pub(crate) fn weights(source: &Source) -> (Vec<u64>, u64) {
    let (mut layers, mut output) = (Vec::new(), 0);
    let shared = source.tensor("output.weight").is_none();
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
            None if tensor.name.starts_with("token_embd") && !shared => {}
            None => output += tensor.byte_len(),
        }
    }
    (layers, output)
}

/// Where a model's layers go.
pub(crate) struct Placement {
    /// The accelerator; `None` for the processor alone.
    pub(crate) device: Option<Device>,
    /// Layers on it as llama.cpp counts them, the output included.
    pub(crate) gpu_layers: u32,
    /// Bytes of the cache in the processor's memory, and what is free there; 0 where unknown.
    pub(crate) host_cache: u64,
    pub(crate) host_free: u64,
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
    let (chosen, at) = match wish {
        None => (preferred(&all), ""),
        Some(id) => (Some(named(&all, id)?), " as asked"),
    };
    let host_free = all.iter().find(|device| device.kind == Kind::Cpu).map_or(0, |device| device.free);
    let Some(device) = chosen.filter(|device| device.holds_layers() && layers != Some(0)) else {
        return Ok(Placement {
            device: None,
            gpu_layers: 0,
            host_cache: cache_per_layer.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
            host_free,
            told: format!("all layers on the processor{at}"),
        });
    };
    let (weights, output) = weights(source);
    let caches = cache_per_layer.iter().chain(std::iter::repeat(&0));
    let per_layer: Vec<u64> = weights.iter().zip(caches).map(|(w, c)| w.saturating_add(*c)).collect();
    let fits = layers.unwrap_or_else(|| layers_that_fit(device.free, &per_layer, output));
    let on_device = fits.saturating_sub(1).min(per_layer.len() as u32);
    let told = format!("{on_device} of {} layers on {}{at}", per_layer.len(), device.id);
    let shares = device.kind == Kind::Integrated;
    let stays = cache_per_layer.len().saturating_sub(if shares { 0 } else { on_device as usize });
    Ok(Placement {
        device: Some(device.clone()),
        gpu_layers: fits,
        host_cache: cache_per_layer[..stays].iter().fold(0, |sum, bytes| sum.saturating_add(*bytes)),
        host_free,
        told,
    })
}

/// The accelerator to take where none is named: one with memory of its own before one without, then the one with most
/// memory free. Where two backends reach the same card, the first in ggml's order is that of its maker.
fn preferred(all: &[Device]) -> Option<&Device> {
    let again = |at: usize| {
        let place = &all[at].place;
        !place.is_empty() && all[..at].iter().any(|device| device.holds_layers() && device.place == *place)
    };
    let candidates = all.iter().enumerate().filter(|(at, device)| device.holds_layers() && !again(*at));
    let best =
        candidates.max_by_key(|(at, device)| (device.kind == Kind::Gpu, device.free, std::cmp::Reverse(*at)));
    best.map(|(_, device)| device)
}

fn named<'a>(all: &'a [Device], id: &str) -> Result<&'a Device> {
    let mut choice = all.iter().filter(|device| device.kind != Kind::Helper);
    choice.clone().find(|device| device.id.eq_ignore_ascii_case(id)).ok_or_else(|| {
        let ids: Vec<_> = choice.by_ref().map(|device| device.id.as_str()).collect();
        BackendError::new(ErrorCode::InvalidRequest, format!("there is no device {id:?}"))
            .with_help(format!("Choose one of: {}.", ids.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_and_the_last_layers_go_first_and_none_without_a_layer() {
        assert_eq!(layers_that_fit(1000, &[100; 4], 100), 5); // 900 usable
        assert_eq!(layers_that_fit(500, &[100; 4], 100), 4); // the output and three layers: 450 usable, 100 reserved for the output
        assert_eq!(layers_that_fit(100, &[100; 4], 10), 0);
        assert_eq!(layers_that_fit(u64::MAX, &[], 0), 0);
    }

    /// Devices from `id kind place free`, `-` for an unknown place.
    fn machine(lines: &[&str]) -> Vec<Device> {
        let device = |line: &&str| {
            let words: Vec<_> = line.split(' ').collect();
            let kind = match words[1] {
                "cpu" => Kind::Cpu,
                "gpu" => Kind::Gpu,
                "integrated" => Kind::Integrated,
                _ => Kind::Helper,
            };
            Device::imagined(words[0], kind, words[2].trim_matches('-'), words[3].parse().unwrap())
        };
        lines.iter().map(device).collect()
    }

    #[test]
    fn the_accelerator_with_most_memory_of_its_own_is_preferred() {
        let table: [(&[&str], Option<&str>); 6] = [
            (&["cpu cpu - 64", "blas helper - 0"], None),
            (&["cuda0 gpu a 8", "cuda1 gpu b 16", "cpu cpu - 64"], Some("cuda1")),
            // The processor's memory is not that of a card, however much there is.
            (&["vulkan0 integrated a 60", "vulkan1 gpu b 8", "cpu cpu - 64"], Some("vulkan1")),
            (&["vulkan0 integrated a 60", "cpu cpu - 64"], Some("vulkan0")),
            // One card under two names, of which the second sees more of it free.
            (&["cuda0 gpu a 80", "vulkan0 gpu a 81", "cpu cpu - 64"], Some("cuda0")),
            (&["cuda0 gpu - 80", "cuda1 gpu - 80"], Some("cuda0")),
        ];
        for (lines, expected) in table {
            let all = machine(lines);
            assert_eq!(preferred(&all).map(|device| device.id.as_str()), expected, "{lines:?}");
        }
    }

    #[test]
    fn devices_are_named_in_any_case_and_helpers_are_none() {
        let all = machine(&["cuda0 gpu a 8", "blas helper - 0", "cpu cpu - 64"]);
        assert_eq!(named(&all, "CUDA0").unwrap().id, "cuda0");
        assert_eq!(named(&all, "cpu").unwrap().id, "cpu");
        let error = named(&all, "blas").unwrap_err();
        assert!(format!("{error:?}").contains("Choose one of: cuda0, cpu."), "{error:?}");
    }
}
