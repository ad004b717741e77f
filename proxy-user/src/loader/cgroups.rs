//! The cgroups of pods, found by the names that the kubelet gives them.
//!
//! `…/pod<UID>` with the cgroupfs driver, `…-pod<UID with _ for ->.slice` with the systemd driver;
//! where in the tree depends on the quality of service and on what the node runs in. Reads
//! directories only.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How far below the root a pod's cgroup is looked for.
const DEPTH: usize = 8;

/// The ids of the cgroups below `root` that belong to pods with these `uids`, by UID. A cgroup that
/// goes while it is looked at is none.
pub fn of_pods<'a>(root: &Path, uids: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, u64> {
    let names: Vec<_> = uids.map(|uid| (uid, format!("pod{uid}"))).collect();
    let mut found = BTreeMap::new();
    if !names.is_empty() {
        search(root, DEPTH, &names, &mut found);
    }
    found
}

fn search<'a>(
    directory: &Path,
    depth: usize,
    names: &[(&'a str, String)],
    found: &mut BTreeMap<&'a str, u64>,
) {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let name = entry.file_name().to_string_lossy().replace('_', "-");
        let name = name.strip_suffix(".slice").unwrap_or(&name);
        match names.iter().find(|(_, pod)| name.ends_with(pod.as_str())) {
            Some((uid, _)) => found.extend(entry.metadata().ok().map(|data| (*uid, data.ino()))),
            None if depth > 1 => search(&entry.path(), depth - 1, names, found),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_either_cgroup_driver_and_their_containers_are_not() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::metadata(path).unwrap().ino()
        };
        let a = make("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0a_1b.slice");
        let b = make("kubepods/besteffort/pod7c-8d");
        let _container = make("kubepods/besteffort/pod7c-8d/pod0a-1b");
        let _other = make("kubepods/pod7c-8d9");
        let uids = ["0a-1b", "7c-8d", "9e-9f"];
        let found = of_pods(root.path(), uids.into_iter());
        assert_eq!(found, [("0a-1b", a), ("7c-8d", b)].into());
    }
}
