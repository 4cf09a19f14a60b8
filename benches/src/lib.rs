//! Benches of Esker: the records of all benches, and the comparison with other stores (`compare`).
//!
//! The comparison is one program. A person starts [`compare`], which starts the program again for every single run
//! ([`child`]), so that memory and CPU are those of one store in one workload. [`drive`] executes the workload, [`stores`]
//! holds the calls of each store, [`machine`] measures the cost, [`report`] and [`svg`] present the results.

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
