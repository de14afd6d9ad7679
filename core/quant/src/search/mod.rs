//! Finding the scales that lose least.
//!
//! Every search but [`even`]'s works on a [`Tile`](crate::weights::Tile): sixteen blocks at once, one per lane, so that sums
//! over a block need no operation across lanes. A search tries a ladder of candidate scales; for each one the best real scale
//! follows in closed form from least squares, and the candidate with the smallest weighted squared error wins.

pub(crate) mod affine;
pub(crate) mod codebook;
pub(crate) mod even;
pub(crate) mod grid;
pub(crate) mod superblock;
pub(crate) mod symmetric;
