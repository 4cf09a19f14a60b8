//! A store on a simulated machine beside its model, with one file for each group of operations on it.

mod cold;
mod incarnation;
mod reads;
mod state;
mod writes;

pub(crate) use state::{CrashPoint, Outcome, Points, World};
