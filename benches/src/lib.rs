//! Benches of Esker: the records that all of them use, and the comparison with other stores (`compare`).
//!
//! The comparison is one program. Started by a person it is [`compare`], which starts itself again for every single
//! run ([`child`]), so that memory and CPU are those of one store in one workload. [`drive`] does the workload,
//! [`stores`] says how each store does it, [`machine`] what it cost, [`report`] and [`svg`] what a person sees.

pub mod budget;
pub mod child;
pub mod compare;
pub mod data;
pub mod device;
pub mod drive;
pub mod error;
pub mod machine;
pub mod options;
pub mod report;
pub mod result;
pub mod store;
pub mod stores;
pub mod svg;
mod tasks;
pub mod workload;
