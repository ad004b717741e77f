//! The manifests of a folder: which files there are, what each last said, and what all of them
//! together say.

use super::manifest::{self, Fault, Manifest};
use crate::model::{Change, Node, ObjectName, OptedOut, Service, Slice, Warning};
use crate::source::Wanted;
use crate::source::convert::Converter;
use ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::mem::take;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A file younger than this may change again without a new time stamp.
const RACY: Duration = Duration::from_millis(100);
/// How many objects of a file are named that cannot be read.
const FAULTS_NAMED: usize = 10;

/// A folder, and what was last read of it.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    node_name: String,
    names: bool,
    converter: Converter,
    files: BTreeMap<PathBuf, File>,
    /// Whether `sent` is not what the files say.
    stale: bool,
    /// Why the folder cannot be read, if it cannot.
    trouble: Option<Warning>,
    sent: Option<Objects>,
    sent_warnings: Vec<Warning>,
}

#[derive(Debug, Default)]
struct File {
    /// What the file looked like when it was read; `None` if it must be read again.
    stamp: Option<Stamp>,
    manifest: Manifest,
    warnings: Vec<Warning>,
}

/// Inode, size and time of modification in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

/// What all files together say.
#[derive(Debug, Default, PartialEq)]
struct Objects {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, Slice>,
    node: Option<Node>,
    service_cidrs: BTreeSet<IpNetwork>,
    opted_out: OptedOut,
    /// `None` if names are not wanted.
    names: Option<Names>,
}

/// What has names beside Services.
#[derive(Debug, Default, PartialEq)]
struct Names {
    /// Those of the Services too: who writes manifests seldom writes Namespaces.
    namespaces: BTreeSet<Arc<str>>,
    corefile: Option<Arc<str>>,
}

impl Folder {
    /// The folder at `path`, of which nothing has been read.
    pub(super) fn new(path: &Path, wanted: Wanted<'_>) -> Self {
        Self {
            path: path.into(),
            node_name: wanted.node_name.into(),
            names: wanted.names,
            converter: Converter::new(wanted.names),
            files: BTreeMap::new(),
            stale: true,
            trouble: None,
            sent: None,
            sent_warnings: Vec::new(),
        }
    }

    /// The device and inode of the folder itself, which tell one that was replaced.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Reads the files that have changed, and says what that changes.
    pub(super) fn scan(&mut self) -> Vec<Change> {
        let trouble = self.read().err().map(|error| Warning {
            subject: format!("folder {}", self.path.display()),
            message: format!("it cannot be read, so what it last held stays: {error}"),
        });
        if !self.stale && self.trouble == trouble {
            return Vec::new();
        }
        self.stale = false;
        self.trouble = trouble;
        let files = self.files.values().flat_map(|file| &file.warnings);
        let mut warnings: Vec<_> = self.trouble.iter().chain(files).cloned().collect();
        let objects = self.merge(&mut warnings);
        let mut changes = match &self.sent {
            None => objects.all(),
            Some(sent) => objects.since(sent),
        };
        self.sent = Some(objects);
        if self.sent_warnings != warnings {
            self.sent_warnings.clone_from(&warnings);
            changes.push(Change::SourceWarnings(warnings));
        }
        changes
    }

    /// Reads the files that have changed, and notes whether any has. A folder that is away for a
    /// moment takes nothing with it.
    fn read(&mut self) -> io::Result<()> {
        let paths = self.paths()?;
        let before = self.files.len();
        self.files.retain(|path, _| paths.contains(path));
        self.stale |= self.files.len() < before;
        for path in paths {
            let file = self.files.entry(path.clone()).or_default();
            self.stale |= file.update(&path, &mut self.converter);
        }
        Ok(())
    }

    /// The manifests in order of their names. Hidden entries are passed over: a ConfigMap volume
    /// keeps its versions in such folders, and editors their copies.
    fn paths(&self) -> io::Result<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] == b'.');
            let manifest =
                path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
            if manifest && !hidden && !path.is_dir() {
                paths.insert(path);
            }
        }
        Ok(paths)
    }

    /// Of an object in two files, the first file by name counts.
    fn merge(&self, warnings: &mut Vec<Warning>) -> Objects {
        let mut objects = Objects::default();
        let mut owners = BTreeMap::new();
        for (path, file) in &self.files {
            let mut first = |object: String| {
                let Some(owner) = owners.get(&object) else {
                    owners.insert(object, path);
                    return true;
                };
                warnings.push(Warning {
                    subject: object,
                    message: format!(
                        "it is in {} and again in {}: the first counts, remove the other",
                        owner.display(),
                        path.display()
                    ),
                });
                false
            };
            for service in &file.manifest.services {
                if first(format!("Service {}", service.name)) {
                    objects.services.insert(service.name.clone(), service.clone());
                }
            }
            for slice in &file.manifest.slices {
                if first(format!("EndpointSlice {}", slice.name)) {
                    objects.slices.insert(slice.name.clone(), slice.clone());
                }
            }
            objects.service_cidrs.extend(&file.manifest.service_cidrs);
            for node in file.manifest.nodes.iter().filter(|node| *node.name == *self.node_name) {
                if first(format!("Node {}", node.name)) {
                    objects.node = Some(node.clone());
                }
            }
        }
        let pods = self.files.values().flat_map(|file| &file.manifest.opted_out);
        let own = pods.filter(|(node, _)| *node == self.node_name);
        own.for_each(|(_, pod)| objects.opted_out.extend(pod));
        if self.names {
            let manifests = || self.files.values().map(|file| &file.manifest);
            let listed = manifests().flat_map(|manifest| &manifest.namespaces).cloned();
            let used = objects.services.keys().map(|name| name.namespace.clone());
            objects.names = Some(Names {
                namespaces: listed.chain(used).collect(),
                corefile: manifests().find_map(|manifest| manifest.corefile.clone()),
            });
        }
        if objects.node.is_none() {
            warnings.push(crate::source::no_node(&self.node_name));
        }
        objects
    }
}

impl File {
    /// Reads the file if it has changed, and says whether it had. What cannot be read leaves what
    /// was read before.
    fn update(&mut self, path: &Path, converter: &mut Converter) -> bool {
        let looked = fs::metadata(path).map(|metadata| (stamp(&metadata), metadata.modified()));
        if let (Ok((now, _)), Some(then)) = (&looked, &self.stamp)
            && now == then
        {
            return false;
        }
        self.stamp = None;
        let read = looked.and_then(|looked| Ok((looked, fs::read_to_string(path)?)));
        let messages = match read {
            Ok(((stamp, modified), text)) => {
                let age =
                    modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
                self.stamp = age.filter(|&age| age > RACY).map(|_| stamp);
                let (mut manifest, faults) = manifest::read(&text, converter);
                if !faults.is_empty() {
                    manifest.keep(take(&mut self.manifest));
                }
                self.manifest = manifest;
                describe(&faults)
            }
            Err(error) => vec![format!("it cannot be read, so what it last held stays: {error}")],
        };
        let subject = format!("file {}", path.display());
        let warning = |message| Warning { subject: subject.clone(), message };
        self.warnings = messages.into_iter().map(warning).collect();
        true
    }
}

/// A sentence for each fault, and one for all beyond the first ones.
fn describe(faults: &[Fault]) -> Vec<String> {
    let sentence = |fault: &Fault| {
        format!(
            "line {} cannot be read, so what the file last held beside the rest stays: {}",
            fault.line, fault.reason
        )
    };
    let mut sentences: Vec<_> = faults.iter().take(FAULTS_NAMED).map(sentence).collect();
    if let more @ 1.. = faults.len().saturating_sub(FAULTS_NAMED) {
        sentences.push(format!("{more} more of its objects cannot be read"));
    }
    sentences
}

impl Objects {
    fn all(&self) -> Vec<Change> {
        let mut all = self.names.as_ref().map_or_else(Vec::new, Names::all);
        all.push(Change::AllServices(self.services.values().cloned().collect()));
        all.push(Change::AllSlices(self.slices.values().cloned().collect()));
        all.push(Change::Node(self.node.clone()));
        all.push(self.service_cidrs());
        all.push(Change::OptedOutPods(self.opted_out.clone()));
        all
    }

    fn service_cidrs(&self) -> Change {
        Change::ServiceCidrs(self.service_cidrs.iter().copied().collect())
    }

    /// What leads from `before` to these.
    fn since(&self, before: &Self) -> Vec<Change> {
        let services = differences(&before.services, &self.services).map(|change| match change {
            Ok(service) => Change::Service(Box::new(service.clone())),
            Err(name) => Change::ServiceGone(name.clone()),
        });
        let slices = differences(&before.slices, &self.slices).map(|change| match change {
            Ok(slice) => Change::Slice(Box::new(slice.clone())),
            Err(name) => Change::SliceGone(name.clone()),
        });
        let node = (before.node != self.node).then(|| Change::Node(self.node.clone()));
        let cidrs = (before.service_cidrs != self.service_cidrs).then(|| self.service_cidrs());
        let pods = (before.opted_out != self.opted_out)
            .then(|| Change::OptedOutPods(self.opted_out.clone()));
        let names = self.names.as_ref().filter(|_| self.names != before.names);
        let names = names.map(Names::all).into_iter().flatten();
        names.chain(services).chain(slices).chain(node).chain(cidrs).chain(pods).collect()
    }
}

impl Names {
    fn all(&self) -> Vec<Change> {
        let namespaces = self.namespaces.iter().cloned().collect();
        vec![Change::AllNamespaces(namespaces), Change::Corefile(self.corefile.clone())]
    }
}

/// What is gone (`Err`), and then what is new or different (`Ok`).
fn differences<'a, T: PartialEq>(
    before: &'a BTreeMap<ObjectName, T>,
    now: &'a BTreeMap<ObjectName, T>,
) -> impl Iterator<Item = Result<&'a T, &'a ObjectName>> {
    let gone = before.keys().filter(|name| !now.contains_key(*name)).map(Err);
    gone.chain(
        now.iter()
            .filter(|(name, object)| before.get(*name) != Some(object))
            .map(|(_, object)| Ok(object)),
    )
}
