//! One run of a library, in a process of its own.
//!
//! Knows: which library is called for whom. Must never know: how often and beside what it runs.

mod imago;
mod qcow2_rs;
mod quod;

use crate::engine::Maker;
use crate::task::Task;

/// Runs a task; gives the words that tell what came of it.
pub fn run(task: &str) -> Result<String, String> {
    let task: Task = serde_json::from_str(task).map_err(|error| error.to_string())?;
    let outcome = match task.maker {
        Maker::Quod | Maker::QuodPlain | Maker::QuodThreads | Maker::QuodWritethrough => quod::run(&task),
        Maker::Imago | Maker::ImagoPool => imago::run(&task),
        Maker::Qcow2Rs => qcow2_rs::run(&task),
        Maker::Fio | Maker::Qemu => Err("a program of its own".to_owned()),
    }?;
    serde_json::to_string(&outcome).map_err(|error| error.to_string())
}
