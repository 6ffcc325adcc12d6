//! Scenarios of qcow2.

use super::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    Vec::new()
}
