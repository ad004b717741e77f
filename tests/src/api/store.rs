//! The objects, and the history of their changes.

use super::kinds::Kind;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Resource, namespace (empty for a kind without), name.
pub(super) type Key = (&'static str, String, String);

/// A change: what an object was and what it became.
#[derive(Clone)]
pub(super) struct Step {
    /// The version that the change made.
    pub(super) version: u64,
    /// The resource.
    pub(super) resource: &'static str,
    /// What the object was.
    pub(super) before: Option<Arc<Value>>,
    /// What it became; a deleted object keeps its last state, with the version of the deletion.
    pub(super) after: Arc<Value>,
    /// Whether the object was deleted.
    pub(super) deleted: bool,
}

/// All objects.
#[derive(Default)]
pub(super) struct Store {
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Step>,
    version: u64,
    compacted: u64,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The objects of a resource, in order of namespace and name.
    pub(super) fn objects(&self, resource: &str) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter().filter(move |((kind, ..), _)| *kind == resource)
    }

    pub(super) fn object(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The changes after `version`, or `None` if they have been forgotten.
    pub(super) fn since(&self, version: u64) -> Option<&[Step]> {
        if version < self.compacted {
            return None;
        }
        let begin = self.history.partition_point(|step| step.version <= version);
        Some(&self.history[begin..])
    }

    /// Forgets the history.
    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.history.clear();
    }

    /// Creates or replaces `object`.
    pub(super) fn apply(&mut self, kind: &Kind, object: Value) -> Result<()> {
        let name =
            object["metadata"]["name"].as_str().context("an object without metadata.name")?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let namespace = if kind.namespaced { namespace } else { "" };
        self.put(kind, (kind.plural, namespace.into(), name.into()), object);
        Ok(())
    }

    /// Stores `object` at `key`, completes its metadata, and returns what is stored now.
    pub(super) fn put(&mut self, kind: &Kind, key: Key, mut object: Value) -> Arc<Value> {
        let before = self.objects.get(&key).cloned();
        self.version += 1;
        let old = before.as_ref().map_or(&Value::Null, |before| &before["metadata"]);
        let kept = |field: &str, new: Value| match old.get(field) {
            Some(old) => old.clone(),
            None => new,
        };
        let given = object["metadata"]["creationTimestamp"].take();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let created = if given.is_string() { given } else { kept("creationTimestamp", now.into()) };
        let uid = kept("uid", format!("00000000-0000-4000-8000-{:012x}", self.version).into());
        object["apiVersion"] = kind.api_version.into();
        object["kind"] = kind.kind.into();
        let metadata = &mut object["metadata"];
        if !metadata.is_object() {
            *metadata = json!({});
        }
        metadata["name"] = key.2.as_str().into();
        if kind.namespaced {
            metadata["namespace"] = key.1.as_str().into();
        }
        metadata["uid"] = uid;
        metadata["creationTimestamp"] = created;
        metadata["resourceVersion"] = self.version.to_string().into();
        self.insert(key, before, object)
    }

    /// Stores `object` at `key` as it is, but for its version.
    pub(super) fn put_raw(&mut self, key: Key, mut object: Value) {
        let before = self.objects.get(&key).cloned();
        self.version += 1;
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            metadata.insert("resourceVersion".into(), self.version.to_string().into());
        }
        self.insert(key, before, object);
    }

    fn insert(&mut self, key: Key, before: Option<Arc<Value>>, object: Value) -> Arc<Value> {
        let after = Arc::new(object);
        self.objects.insert(key.clone(), after.clone());
        let step = Step {
            version: self.version,
            resource: key.0,
            before,
            after: after.clone(),
            deleted: false,
        };
        self.history.push(step);
        after
    }

    /// Deletes the object at `key` and returns its last state.
    pub(super) fn delete(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.version += 1;
        let mut last = (*before).clone();
        if let Some(Value::Object(metadata)) = last.get_mut("metadata") {
            metadata.insert("resourceVersion".into(), self.version.to_string().into());
        }
        let after = Arc::new(last);
        self.history.push(Step {
            version: self.version,
            resource: key.0,
            before: Some(before),
            after: after.clone(),
            deleted: true,
        });
        Some(after)
    }
}
