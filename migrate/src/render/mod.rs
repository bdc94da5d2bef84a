//! How resources look: tables for people, Kubernetes-like objects for programs.

pub(crate) mod describe;
#[cfg(test)]
pub(crate) mod documented;
pub(crate) mod evacuation;
pub(crate) mod policy;
pub(crate) mod prediction;
pub(crate) mod resource;
pub(crate) mod table;
pub(crate) mod units;
