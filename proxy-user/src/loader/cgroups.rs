//! The cgroups of pods, found by the names that the kubelet gives them.
//!
//! `pod<UID>` with the cgroupfs driver, `kubepods-…-pod<UID with _ for ->.slice` with the systemd
//! driver; where in the tree depends on the quality of service and on what the node runs in. A name
//! counts as a whole, and nothing below a pod does: what is there, the pod may have made. Reads
//! directories only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// How far below the root a pod's cgroup is looked for.
const DEPTH: usize = 8;

/// The ids of the cgroups below `root` that belong to pods with these `uids`, by UID. A cgroup that
/// goes while it is looked at is none.
pub fn of_pods<'a>(root: &Path, uids: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, u64> {
    let uids: BTreeSet<_> = uids.collect();
    let mut found = BTreeMap::new();
    if !uids.is_empty() {
        search(root, DEPTH, &uids, &mut found);
    }
    found
}

fn search<'a>(
    directory: &Path,
    depth: usize,
    uids: &BTreeSet<&'a str>,
    found: &mut BTreeMap<&'a str, u64>,
) {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        match pod_uid(&entry.file_name().to_string_lossy()) {
            Some(pod) => {
                if let (Some(&uid), Ok(data)) = (uids.get(&*pod), entry.metadata()) {
                    found.insert(uid, data.ino());
                }
            }
            None if depth > 1 => search(&entry.path(), depth - 1, uids, found),
            None => {}
        }
    }
}

/// The UID of the pod whose cgroup the directory `name` is: that of the API server, or the 32
/// hexadecimal digits of a static pod.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        None => name.strip_prefix("pod")?.to_owned(),
        Some(slice) => {
            // A kubelet with a root of its own, as in kind, has `kubelet-kubepods-…`.
            let (parents, uid) = slice.rsplit_once("-pod")?;
            let mut parents = parents.rsplit('-');
            let is_kubelets = match parents.next()? {
                "burstable" | "besteffort" => parents.next()? == "kubepods",
                last => last == "kubepods",
            };
            is_kubelets.then(|| uid.replace('_', "-"))?
        }
    };
    let digits: Vec<_> = uid.split('-').map(str::len).collect();
    let is_uid = digits == [8, 4, 4, 4, 12] || digits == [32];
    let is_hexadecimal = uid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    (is_uid && is_hexadecimal).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0a1b2c3d-0000-4000-8000-00000000000a";
    const B: &str = "0a1b2c3d-0000-4000-8000-00000000000b";
    const C: &str = "0a1b2c3d-0000-4000-8000-00000000000c";
    const STATIC: &str = "4f7ff36d4f6b1ea0b1b2ba5c5a3a4b0e";

    #[test]
    fn pods_are_found_by_either_cgroup_driver_and_what_is_inside_them_is_not() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: String| {
            let path = root.path().join(path);
            fs::create_dir_all(&path).unwrap();
            fs::metadata(path).unwrap().ino()
        };
        let burstable = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod";
        let a = make(format!("{burstable}{}.slice", A.replace('-', "_")));
        let b = make(format!("kubepods/besteffort/pod{B}"));
        let nested = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod";
        let mirrored = make(format!("{nested}{STATIC}.slice"));
        let _made_by_a_pod = make(format!("kubepods/besteffort/pod{B}/pod{C}"));
        let found = of_pods(root.path(), [A, B, C, STATIC].into_iter());
        assert_eq!(found, [(A, a), (B, b), (STATIC, mirrored)].into());
    }

    #[test]
    fn a_directory_counts_by_its_whole_name() {
        for (name, uid) in [
            (format!("pod{A}"), Some(A)),
            (format!("pod{STATIC}"), Some(STATIC)),
            ("kubepods".to_owned(), None),
            ("kubepods.slice".to_owned(), None),
            ("pods".to_owned(), None),
            (format!("pod{A}9"), None),
            (format!("tripod{A}"), None),
            (format!("pod{A}.slice"), None),
            (format!("user-pod{A}.slice"), None),
            (format!("kubepods-burstable-pod{A}.scope"), None),
            (format!("kubepods-pod{}.slice", A.replace('-', "_")), Some(A)),
            (format!("notkubepods-besteffort-pod{}.slice", A.replace('-', "_")), None),
        ] {
            assert_eq!(pod_uid(&name).as_deref(), uid, "{name}");
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("kubepods/burstable")).unwrap();
        assert!(of_pods(root.path(), ["s", "", "kube"].into_iter()).is_empty());
    }
}
