use super::*;
#[cfg(target_arch = "x86_64")]
use crate::kernels::isa::{TileKernel, amx::Emulated};

/// Who attends.
#[derive(Debug, Clone, Copy)]
enum By {
    Path(Path),
    #[cfg(target_arch = "x86_64")]
    Tiles,
    #[cfg(target_arch = "x86_64")]
    EmulatedTiles,
}

/// The queries as tiles take them: two alone, the others together; groups are filled up.
#[cfg(target_arch = "x86_64")]
fn in_groups(queries: &[Query]) -> Vec<Query> {
    let (alone, together) = queries.split_at(2.min(queries.len()));
    let mut groups = Vec::new();
    for group in alone.chunks(1).chain(together.chunks(tiled::GROUP)) {
        groups.extend_from_slice(group);
        groups.resize(groups.len().next_multiple_of(tiled::GROUP), Query::NONE);
    }
    groups
}

#[test]
fn sights_cover_the_positions_they_name() {
    let sight = Sight { from: 70, to: 130 };
    assert_eq!(sight.of_page(0), 0);
    assert_eq!(sight.of_page(64), u64::MAX << 6);
    assert_eq!(sight.of_page(128), 0b111);
    assert_eq!(Sight { from: 0, to: u32::MAX }.of_page(64), u64::MAX);
}

/// Softmax attention by its definition, in double precision.
fn exact(
    q: &[f32],
    keys: &[Vec<f32>],
    values: &[Vec<f32>],
    seen: &[usize],
    scale: f64,
    cap: Option<f64>,
    sink: Option<f64>,
) -> Vec<f64> {
    let scores: Vec<f64> = seen
        .iter()
        .map(|&i| {
            let s: f64 =
                q.iter().zip(&keys[i]).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>() * scale;
            cap.map_or(s, |cap| cap * (s / cap).tanh())
        })
        .collect();
    let top = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - top).exp());
    (0..values[0].len())
        .map(|j| seen.iter().zip(&weights).map(|(&i, w)| w / total * f64::from(values[i][j])).sum())
        .collect()
}

#[test]
fn the_running_softmax_equals_the_definition_with_windows_holes_caps_and_sinks() {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 4_194_304.0 - 2.0
    };
    for (width, value_width, queries, length) in
        [(32usize, 32usize, 1usize, 5usize), (64, 64, 7, 200), (24, 40, 16, 130), (80, 80, 5, 64)]
    {
        let keys: Vec<Vec<f32>> = (0..length).map(|_| (0..width).map(|_| next()).collect()).collect();
        let values: Vec<Vec<f32>> = (0..length).map(|_| (0..value_width).map(|_| next()).collect()).collect();
        let q: Vec<f32> = (0..queries * width).map(|_| next()).collect();
        let hole = 3usize; // a position that was removed
        let stride = usize::next_multiple_of(value_width, LANES);
        // A page's keys and values, as floats and as words, and what of it is valid.
        let pages: Vec<([[Vec<f32>; 2]; 2], u64)> = (0..length.div_ceil(PAGE))
            .map(|p| {
                let room = |stored: Stored| {
                    [width, stride].map(|width| vec![0f32; stored.page_bytes(width) / size_of::<f32>()])
                };
                let mut forms = [room(Stored::Float), room(Stored::Word)];
                let mut valid = 0u64;
                for slot in 0..PAGE.min(length - p * PAGE) {
                    let i = p * PAGE + slot;
                    let [[k, v], [word_keys, word_values]] = &mut forms;
                    (0..width).for_each(|d| k[d * PAGE + slot] = keys[i][d]);
                    v[slot * stride..][..value_width].copy_from_slice(&values[i]);
                    // SAFETY: the rooms are pages.
                    unsafe {
                        put_key(&keys[i], word_keys.as_mut_ptr().cast(), slot);
                        put_value(&values[i], word_values.as_mut_ptr().cast(), slot, stride);
                    }
                    valid |= u64::from(i != hole) << slot;
                }
                (forms, valid)
            })
            .collect();
        for (softcap, sink, window) in
            [(None, None, None), (Some(5.0f32), None, Some(9)), (None, Some(0.7f32), None)]
        {
            let sights: Vec<Sight> = (0..queries)
                .map(|i| {
                    let to = (length - queries + i) as u32;
                    Sight { from: window.map_or(0, |w| (to + 1u32).saturating_sub(w)), to }
                })
                .collect();
            let kinds = [(0, Stored::Float, 2e-5), (1, Stored::Word, 6e-4)];
            let mut all: Vec<(By, usize, Stored, f64)> = Path::all()
                .into_iter()
                .flat_map(|path| {
                    kinds.map(|(form, stored, tolerance)| (By::Path(path), form, stored, tolerance))
                })
                .collect();
            #[cfg(target_arch = "x86_64")]
            {
                // Eight bits, of queries, keys, weights and values each.
                all.push((By::EmulatedTiles, 1, Stored::Word, 0.015));
                if Path::all().contains(&Path::Amx) {
                    all.push((By::Tiles, 1, Stored::Word, 0.015));
                }
            }
            for (by, form, stored, tolerance) in all {
                let mut out = vec![f32::NAN; queries * value_width];
                let asked: Vec<Query> = (sights.iter().enumerate())
                    .map(|(i, &sight)| Query {
                        q: q[i * width..].as_ptr(),
                        out: out[i * value_width..].as_mut_ptr(),
                        sight,
                        sink,
                    })
                    .collect();
                #[cfg(target_arch = "x86_64")]
                let asked = if matches!(by, By::Path(_)) { asked } else { in_groups(&asked) };
                let task = HeadTask {
                    stored,
                    key_width: width,
                    value_width,
                    value_stride: stride,
                    scale: 0.2,
                    softcap,
                    queries: &asked,
                };
                let views = pages.iter().enumerate().map(|(p, (forms, valid))| PageOfHead {
                    keys: forms[form][0].as_ptr().cast(),
                    values: forms[form][1].as_ptr().cast(),
                    first: (p * PAGE) as u32,
                    valid: *valid,
                });
                // SAFETY: the sizes above.
                unsafe {
                    match by {
                        By::Path(path) => attend(path, task, views, &mut Scratch::new(width, value_width)),
                        #[cfg(target_arch = "x86_64")]
                        By::Tiles => tiled::attend(task, views, &mut tiled::Room::new(width, value_width)),
                        #[cfg(target_arch = "x86_64")]
                        By::EmulatedTiles => {
                            let room = &mut tiled::Room::new(width, value_width);
                            let by = std::marker::PhantomData::<Emulated>;
                            tiled::ByTiles { task, pages: views, room, by }.run::<isa::Portable>();
                        }
                    }
                }
                for (i, sight) in sights.iter().enumerate() {
                    let seen: Vec<usize> =
                        (sight.from as usize..=sight.to as usize).filter(|&p| p != hole).collect();
                    let expected = exact(
                        &q[i * width..][..width],
                        &keys,
                        &values,
                        &seen,
                        0.2f32.into(),
                        softcap.map(f64::from),
                        sink.map(f64::from),
                    );
                    for (a, b) in out[i * value_width..].iter().zip(expected) {
                        let error = (f64::from(*a) - b).abs();
                        assert!(error < tolerance, "{stored:?} {by:?}: {a} and {b}");
                    }
                }
            }
        }
    }
}
