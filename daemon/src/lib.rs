//! The library behind `zcrid`.
#![forbid(unsafe_code)]

pub mod container;
pub mod cri;
pub mod pod;
