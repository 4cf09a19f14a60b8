//! One file per group of commands. Each command is a `clap` argument struct with a `run` method.

mod access;
mod admin;
mod demo;
mod load;
mod scan;

pub(crate) use access::{Del, Get, Put};
pub(crate) use admin::{Compact, Repair, Stats, Verify};
pub(crate) use demo::{Demo, DemoLoader};
pub(crate) use load::Load;
pub(crate) use scan::Scan;
