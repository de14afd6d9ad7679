//! `x ≈ s·p` with whole tuples of weights `p` from a codebook.
//!
//! The point nearest to a tuple is found exactly: what each digit would cost is tabulated, summed for every combination of half a
//! tuple, and then a point's cost is one sum of two table entries. Points that share their first half are searched together: of
//! them the one with the cheapest second half is best. Sixteen blocks are searched at once, one per lane.

use std::ops::Range;
use std::sync::OnceLock;

use crate::gguf::iq_grids;
use crate::half_float::Half;
use crate::lanes::{LANES, Lanes};
use crate::simd::{self, Kernel, Level};
use crate::weights::Row;

/// Entries of a half-table: four digits of three levels (81), or two of eight; a power of two, so that a masked place needs no check.
const HALF: usize = 128;

/// Most points a scale is shared by.
const POINTS: usize = 8;

/// A codebook, ready for search.
pub(crate) struct Codebook {
    levels: &'static [f32],
    /// Digits in half a point.
    half: usize,
    /// Each point as two places in the half-tables.
    points: Vec<[u8; 2]>,
    /// Points by their first half.
    groups: Vec<Group>,
    /// Places of the second halves, group by group.
    seconds: Vec<u8>,
    /// The points' numbers in the same order.
    numbers: Vec<u16>,
}

/// Points of a codebook that share their first half.
struct Group {
    /// Its place in the half-table.
    first: u8,
    /// Where its second halves are.
    members: Range<usize>,
}

impl Codebook {
    fn new(points: &[u16], levels: &'static [f32], dimensions: u32) -> Self {
        let bits = if dimensions == 8 { 2 } else { 3 };
        let half = dimensions / 2;
        let place = |digits: u16| {
            (0..half).rev().fold(0, |sum, i| {
                sum * levels.len() as u32 + u32::from(digits >> (bits * i) & ((1 << bits) - 1))
            }) as u8
        };
        let points: Vec<[u8; 2]> =
            points.iter().map(|&point| [place(point), place(point >> (bits * half))]).collect();
        let mut order: Vec<u16> = (0..points.len() as u16).collect();
        order.sort_by_key(|&number| points[usize::from(number)][0]);
        let mut groups: Vec<Group> = Vec::new();
        for (place, &number) in order.iter().enumerate() {
            let first = points[usize::from(number)][0];
            match groups.last_mut() {
                Some(group) if group.first == first => group.members.end += 1,
                _ => groups.push(Group { first, members: place..place + 1 }),
            }
        }
        let seconds = order.iter().map(|&number| points[usize::from(number)][1]).collect();
        Self { levels, half: half as usize, points, groups, seconds, numbers: order }
    }

    /// Weights in a point.
    fn dimensions(&self) -> usize {
        2 * self.half
    }

    /// The digits of a point.
    fn digits(&self, point: u16) -> impl Iterator<Item = usize> + '_ {
        self.points[usize::from(point)].into_iter().flat_map(move |place| {
            let radix = self.levels.len();
            (0..self.half).scan(usize::from(place), move |rest, _| {
                let digit = *rest % radix;
                *rest /= radix;
                Some(digit)
            })
        })
    }
}

macro_rules! books {
    ($($name:ident $points:ident $levels:ident $dimensions:literal;)*) => {$(
        pub(crate) fn $name() -> &'static Codebook {
            static BOOK: OnceLock<Codebook> = OnceLock::new();
            BOOK.get_or_init(|| Codebook::new(&iq_grids::$points, &iq_grids::$levels, $dimensions))
        }
    )*};
}
books! {
    iq2_xxs IQ2_XXS LEVELS_2BIT 8;
    iq2_xs IQ2_XS LEVELS_2BIT 8;
    iq2_s IQ2_S LEVELS_2BIT 8;
    iq1 IQ1 LEVELS_1BIT 8;
    iq3_xxs IQ3_XXS LEVELS_IQ3_XXS 4;
    iq3_s IQ3_S LEVELS_IQ3_S 4;
}

/// How signs are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signs {
    /// Points carry their own.
    None,
    /// One bit per weight.
    Free,
    /// Seven bits for eight weights: the number of minus signs is even.
    Even,
}

/// What a shift of all levels applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    /// There is none.
    None,
    /// All points of a scale.
    Scale,
    /// Each point.
    Point,
}

/// How a type codes its weights.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) book: fn() -> &'static Codebook,
    /// The smallest multiple of the block's scale, and the step between multiples.
    pub(crate) multiples: (f32, f32),
    /// The largest multiple's number.
    pub(crate) top: u8,
    pub(crate) signs: Signs,
    pub(crate) shift: Shift,
    /// Where candidates place the largest magnitude, relative to the largest level.
    pub(crate) ladder: &'static [f32],
    /// How often points are searched only to learn which scale they wish for.
    pub(crate) rehearsals: usize,
}

/// The ladder of types with many levels. Ladders are climbed without the codebook and only lead to a first scale, which is
/// then fitted to the points chosen: a search for points costs hundreds of times as much as a rung.
pub(crate) const FINE: &[f32] = &[0.85, 0.95, 1.05, 1.2, 1.35];
/// The ladder of types with three magnitudes.
pub(crate) const COARSE: &[f32] = &[0.75, 0.85, 0.95, 1.05, 1.15, 1.3, 1.45, 1.7];
/// The ladder of ternary types.
pub(crate) const TERNARY: &[f32] = &[1.2, 1.4, 1.6, 1.8, 2.1, 2.4, 2.8];

/// A tile of coded sub-blocks, one per lane.
pub(crate) struct Coded {
    /// The super-block's half-precision scale.
    pub(crate) d: [f32; LANES],
    /// The number of the sub-block's multiple.
    pub(crate) scale: [u8; LANES],
    /// The sub-block's points.
    pub(crate) points: [[u16; POINTS]; LANES],
    /// Bit `j` of byte `i` is set where weight `8·i + j` is negative.
    pub(crate) signs: [[u8; 4]; LANES],
    /// Bit `k` is set where point `k` is shifted down.
    pub(crate) shifted: [u8; LANES],
}

/// The points chosen for a scale.
#[derive(Clone, Copy)]
struct Choice {
    error: Row,
    points: [[u16; POINTS]; LANES],
    shifted: [u8; LANES],
}

impl Choice {
    /// Takes over the lanes where `other` has the smaller error.
    fn improve(&mut self, other: &Self) {
        for lane in 0..LANES {
            if other.error[lane] < self.error[lane] {
                self.error[lane] = other.error[lane];
                self.points[lane] = other.points[lane];
                self.shifted[lane] = other.shifted[lane];
            }
        }
    }
}

/// Codes a tile of sub-blocks, `subs` of which share a half-precision scale. Only the search for points is worth compiling for
/// every instruction set; the rest is done once here.
pub(crate) fn code(level: Level, shape: &Shape, x: &[Row], w: &[Row], subs: usize) -> Coded {
    let book = (shape.book)();
    let mut x = x.to_vec();
    let signs = take_signs(shape.signs, &mut x, w);
    let find = |scale: &Row| search(level, book, shape.shift, &x, w, scale);

    let (first, step) = shape.multiples;
    let multiple = |number: f32| first + number * step;
    let highest = f32::from(shape.top);
    let reach = book.levels.iter().fold(0.0, |a: f32, b| a.max(b.abs()))
        + if shape.shift == Shift::None { 0.0 } else { iq_grids::IQ1_SHIFT };
    let mut largest = [0.0f32; LANES];
    for x in &x {
        for lane in 0..LANES {
            largest[lane] = largest[lane].max(x[lane].abs());
        }
    }
    let loose = Loose { levels: book.levels, ladder: shape.ladder, reach, x: &x, w, largest: &largest };
    let mut wish = simd::run(level, loose);
    for _ in 0..shape.rehearsals {
        let (xp, pp) = sums(book, shape.shift, &x, w, &find(&wish));
        wish = std::array::from_fn(|lane| if pp[lane] > 0.0 { (xp[lane] / pp[lane]).max(0.0) } else { 0.0 });
    }

    let d = spread(&wish, subs, |lanes| lanes.iter().fold(0.0, |a, &b| if b > a { b } else { a }))
        .map(|largest| Half::from_f32(largest / multiple(highest)).to_f32());
    let nearest = |lane: usize| {
        if d[lane] > 0.0 { ((wish[lane] / d[lane] - first) / step).round_ties_even() } else { 0.0 }
    };
    let number: Row = std::array::from_fn(|lane| nearest(lane).clamp(0.0, highest));
    let best = find(&std::array::from_fn(|lane| d[lane] * multiple(number[lane])));

    let (xp, pp) = sums(book, shape.shift, &x, w, &best);
    let total = |row: &Row| spread(row, subs, |lanes| lanes.iter().fold(0.0, |a, &b| a + b));
    let xp = total(&std::array::from_fn(|lane| multiple(number[lane]) * xp[lane]));
    let pp = total(&std::array::from_fn(|lane| multiple(number[lane]) * multiple(number[lane]) * pp[lane]));
    let refitted: Row =
        std::array::from_fn(
            |lane| if pp[lane] > 0.0 { Half::from_f32(xp[lane] / pp[lane]).to_f32() } else { 0.0 },
        );
    let retried = find(&std::array::from_fn(|lane| refitted[lane] * multiple(number[lane])));
    let (before, after) = (total(&best.error), total(&retried.error));
    let mut coded =
        Coded { d, scale: number.map(|n| n as u8), points: best.points, signs, shifted: best.shifted };
    for lane in 0..LANES {
        if after[lane] < before[lane] && refitted[lane] > 0.0 {
            coded.d[lane] = refitted[lane];
            coded.points[lane] = retried.points[lane];
            coded.shifted[lane] = retried.shifted[lane];
        }
    }
    coded
}

/// Applies `f` to the lanes of each super-block and spreads its result over them.
fn spread(row: &Row, subs: usize, f: impl Fn(&[f32]) -> f32) -> Row {
    let mut out = *row;
    for lanes in out.chunks_exact_mut(subs) {
        let result = f(lanes);
        lanes.fill(result);
    }
    out
}

/// Takes the signs off. Where their number must be even and is not, the weight that matters least gets the wrong sign.
fn take_signs(signs: Signs, x: &mut [Row], w: &[Row]) -> [[u8; 4]; LANES] {
    let mut out = [[0u8; 4]; LANES];
    if signs == Signs::None {
        return out;
    }
    for (i, (x, w)) in x.chunks_exact_mut(8).zip(w.chunks_exact(8)).enumerate() {
        for lane in 0..LANES {
            let cost = |j: usize| w[j][lane] * x[j][lane] * x[j][lane];
            let cheapest = (1..8).fold(0, |cheapest, j| if cost(j) < cost(cheapest) { j } else { cheapest });
            let mut bits = 0u8;
            for (j, x) in x.iter_mut().enumerate() {
                bits |= u8::from(x[lane] < 0.0) << j;
                x[lane] = x[lane].abs();
            }
            if signs == Signs::Even && bits.count_ones() % 2 == 1 {
                bits ^= 1 << cheapest;
                x[cheapest][lane] = -x[cheapest][lane];
            }
            out[lane][i] = bits;
        }
    }
    out
}

/// The best points at the given scales.
fn search(level: Level, book: &Codebook, shift: Shift, x: &[Row], w: &[Row], scale: &Row) -> Choice {
    let find = |shift: f32| simd::run(level, Search { book, shift, x, w, scale });
    if shift == Shift::None {
        return find(0.0).total(0);
    }
    let (mut up, down) = (find(iq_grids::IQ1_SHIFT), find(-iq_grids::IQ1_SHIFT));
    if shift == Shift::Scale {
        let mut choice = up.total(0);
        choice.improve(&down.total(0xff));
        return choice;
    }
    let mut shifted = [0u8; LANES];
    for k in 0..POINTS {
        for lane in 0..LANES {
            if down.errors[k][lane] < up.errors[k][lane] {
                up.errors[k][lane] = down.errors[k][lane];
                up.points[lane][k] = down.points[lane][k];
                shifted[lane] |= 1 << k;
            }
        }
    }
    Choice { shifted, ..up.total(0) }
}

/// The scale that suits weights which may take any level: where that of points of the codebook is looked for.
struct Loose<'a> {
    levels: &'a [f32],
    ladder: &'a [f32],
    reach: f32,
    x: &'a [Row],
    w: &'a [Row],
    largest: &'a Row,
}

impl Kernel for Loose<'_> {
    type Output = Row;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Row {
        let Self { levels, ladder, reach, x, w, largest } = self;
        let unit = L::load(largest).recip_or_zero();
        let (mut best_up, mut best_pp) = (L::zero(), L::splat(1.0));
        for rung in ladder {
            let spread = unit * L::splat(reach * rung);
            let (mut up, mut pp) = (L::zero(), L::zero());
            for (x, w) in x.iter().zip(w) {
                let (x, w) = (L::load(x), L::load(w));
                let u = x * spread;
                let mut level = L::splat(levels[0]);
                for pair in levels.windows(2) {
                    level =
                        L::select(L::splat(f32::midpoint(pair[0], pair[1])).lt(u), L::splat(pair[1]), level);
                }
                let wp = w * level;
                up = up + wp * (x * unit);
                pp = pp + wp * level;
            }
            let better = (best_up * best_up * pp).lt(up * up * best_pp);
            best_up = L::select(better, up, best_up);
            best_pp = L::select(better, pp, best_pp);
        }
        (best_up / best_pp * L::load(largest)).max(L::zero()).to_array()
    }
}

/// Points, and their errors point by point.
struct Found {
    points: [[u16; POINTS]; LANES],
    errors: [Row; POINTS],
}

impl Found {
    fn total(&self, shifted: u8) -> Choice {
        let error =
            std::array::from_fn(|lane| self.errors.iter().fold(0.0, |sum, errors| sum + errors[lane]));
        Choice { error, points: self.points, shifted: [shifted; LANES] }
    }
}

/// The search for the best points at given scales, with all levels shifted alike.
struct Search<'a> {
    book: &'a Codebook,
    shift: f32,
    x: &'a [Row],
    w: &'a [Row],
    scale: &'a Row,
}

impl Kernel for Search<'_> {
    type Output = Found;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Found {
        let Self { book, shift, x, w, scale } = self;
        let scale = L::load(scale);
        let mut found = Found { points: [[0; POINTS]; LANES], errors: [[0.0; LANES]; POINTS] };
        let mut tables = [[[0.0f32; LANES]; HALF]; 2];
        for (k, (x, w)) in
            x.chunks_exact(book.dimensions()).zip(w.chunks_exact(book.dimensions())).enumerate()
        {
            for (table, (x, w)) in
                tables.iter_mut().zip(x.chunks_exact(book.half).zip(w.chunks_exact(book.half)))
            {
                tabulate(book.levels, x, w, scale, shift, table);
            }
            let (mut least, mut group_of) = (L::splat(f32::INFINITY), L::zero());
            for (i, group) in book.groups.iter().enumerate() {
                let mut second = L::splat(f32::INFINITY);
                for &place in &book.seconds[group.members.clone()] {
                    second = L::load(&tables[1][usize::from(place) % HALF]).min(second);
                }
                let cost = L::load(&tables[0][usize::from(group.first) % HALF]) + second;
                let better = cost.lt(least);
                least = L::select(better, cost, least);
                group_of = L::select(better, L::splat(i as f32), group_of);
            }
            let group_of = group_of.to_array();
            found.errors[k] = least.to_array();
            for lane in 0..LANES {
                let members = &book.groups[group_of[lane] as usize].members;
                let (mut cheapest, mut least) = (members.start, f32::INFINITY);
                for (place, &second) in members.clone().zip(&book.seconds[members.clone()]) {
                    let cost = tables[1][usize::from(second) % HALF][lane];
                    (cheapest, least) = if cost < least { (place, cost) } else { (cheapest, least) };
                }
                found.points[lane][k] = book.numbers[cheapest];
            }
        }
        found
    }
}

/// What every combination of digits of half a point costs: `Σ w (x - s·(level + shift))²`.
#[inline(always)]
fn tabulate<L: Lanes>(
    levels: &[f32],
    x: &[Row],
    w: &[Row],
    scale: L,
    shift: f32,
    table: &mut [[f32; LANES]; HALF],
) {
    let mut filled = 1;
    for j in 0..x.len() {
        let (x, w) = (L::load(&x[j]), L::load(&w[j]));
        // From the last digit down, so that combinations without it are still in place.
        for (digit, level) in levels.iter().enumerate().rev() {
            let miss = x - scale * L::splat(level + shift);
            let cost = w * miss * miss;
            for i in 0..filled {
                let sum = if j == 0 { cost } else { cost + L::load(&table[i]) };
                sum.store(&mut table[digit * filled + i]);
            }
        }
        filled *= levels.len();
    }
}

/// `Σ w x p` and `Σ w p²` of the chosen points.
fn sums(book: &Codebook, shift: Shift, x: &[Row], w: &[Row], choice: &Choice) -> (Row, Row) {
    let (mut xp, mut pp) = ([0.0f32; LANES], [0.0f32; LANES]);
    for lane in 0..LANES {
        for k in 0..x.len() / book.dimensions() {
            let offset = match (shift, choice.shifted[lane] >> k & 1) {
                (Shift::None, _) => 0.0,
                (_, 0) => iq_grids::IQ1_SHIFT,
                _ => -iq_grids::IQ1_SHIFT,
            };
            for (i, digit) in book.digits(choice.points[lane][k]).enumerate() {
                let j = k * book.dimensions() + i;
                let p = book.levels[digit] + offset;
                let wp = w[j][lane] * p;
                xp[lane] += wp * x[j][lane];
                pp[lane] += wp * p;
            }
        }
    }
    (xp, pp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::bell;

    #[test]
    fn the_point_found_is_the_nearest_of_all() {
        for (book, shift) in [(iq2_xs(), 0.0), (iq3_s(), 0.0), (iq1(), 0.125)] {
            let n = book.dimensions();
            let values = bell(3, n * LANES);
            let x: Vec<Row> =
                (0..n).map(|j| std::array::from_fn(|lane| values[lane * n + j].abs())).collect();
            let w: Vec<Row> = (0..n).map(|j| [1.0 + j as f32; LANES]).collect();
            let scale = 0.8 / book.levels.last().unwrap();
            let search = Search { book, shift, x: &x, w: &w, scale: &[scale; LANES] };
            let Found { points, errors } = simd::run(simd::level(), search);
            for lane in 0..LANES {
                let cost = |point: u16| -> f64 {
                    let digits = book.digits(point).enumerate();
                    digits
                        .map(|(j, digit)| {
                            let miss =
                                f64::from(values[lane * n + j].abs() - scale * (book.levels[digit] + shift));
                            (1.0 + j as f64) * miss * miss
                        })
                        .sum()
                };
                let least = (0..book.points.len() as u16).map(cost).fold(f64::INFINITY, f64::min);
                assert!((cost(points[lane][0]) - least).abs() < 1e-5, "lane {lane}");
                assert!((f64::from(errors[0][lane]) - least).abs() < 1e-5);
            }
        }
    }
}
