//! Kubernetes objects as far as Shunt reads them: the fields that are used, and no others.
//!
//! An API server checks what it stores, but clients know only the API of their own version, and a
//! field of Go that is empty may come as `null` (`lastTransitionTime` of a condition does). So a
//! field that is not used may hold anything, and one that is used may be absent or `null`, which
//! mean the same: the field's zero, as in Go. What is left cannot be read; [`read`] then names the
//! object and the field. Pure: no I/O.

mod kinds;
#[cfg(test)]
mod tests;

pub use kinds::{
    ClientIp, ConfigMap, Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice,
    Ingress, LoadBalancer, Named, Namespace, Node, NodeAddress, NodeSpec, NodeStatus, Pod, PodIp,
    PodSpec, PodStatus, Service, ServiceCidr, ServiceCidrSpec, ServicePort, ServiceSpec,
    ServiceStatus, SessionAffinityConfig, Taint,
};

use serde::de::{Deserialize, DeserializeOwned, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The longest reason that is given: a value may be a megabyte.
const REASON: usize = 200;

/// An object of a kind that is read.
pub trait Object: DeserializeOwned {
    /// Its group and version, such as `discovery.k8s.io/v1`.
    const API_VERSION: &'static str;
    /// Its kind, such as `EndpointSlice`.
    const KIND: &'static str;

    /// Its metadata.
    fn metadata(&self) -> &Metadata;
}

/// The metadata of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    pub name: Option<String>,
    /// Its namespace; none for an object of the cluster, and in files also for `default`.
    pub namespace: Option<String>,
    /// Its UID.
    pub uid: Option<String>,
    /// Its version.
    pub resource_version: Option<String>,
    /// When it was made (RFC 3339).
    pub creation_timestamp: Option<String>,
    /// When its deletion was asked for (RFC 3339).
    pub deletion_timestamp: Option<String>,
    /// Its labels.
    #[serde(deserialize_with = "map")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(deserialize_with = "map")]
    pub annotations: BTreeMap<String, String>,
    /// Who owns it.
    #[serde(deserialize_with = "list")]
    pub owner_references: Vec<OwnerReference>,
}

/// An owner of an object.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Its group and version.
    #[serde(deserialize_with = "zero")]
    pub api_version: String,
    /// Its kind.
    #[serde(deserialize_with = "zero")]
    pub kind: String,
    /// Its name.
    #[serde(deserialize_with = "zero")]
    pub name: String,
}

impl Metadata {
    /// The name; empty if there is none.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// What tells the object of `json` from others, as far as it can be read at all.
    pub fn identity(json: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct Whole {
            metadata: Box<RawValue>,
        }
        let metadata = serde_json::from_str(json)
            .and_then(|Whole { metadata }| serde_json::from_str::<Value>(metadata.get()));
        metadata.as_ref().map(Self::identity_in).unwrap_or_default()
    }

    fn identity_in(metadata: &Value) -> Self {
        let text = |field| metadata.get(field).and_then(Value::as_str).map(Into::into);
        Self {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..Self::default()
        }
    }
}

/// An object that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// What can be read of its metadata.
    pub metadata: Metadata,
    /// The field that is wrong, and how; a sentence without a full stop.
    pub reason: String,
}

impl Unreadable {
    /// What the object is called, such as `Service shop/web`.
    pub fn subject<T: Object>(&self) -> String {
        let namespace = self.metadata.namespace.iter();
        let name = self.metadata.name.as_deref().unwrap_or("without a name");
        let name: Vec<_> = namespace.map(String::as_str).chain([name]).collect();
        format!("{} {}", T::KIND, shorten(&name.join("/")))
    }
}

/// Reads the object that `json` is.
///
/// # Errors
///
/// If a field that is used has another type, or the object has no name.
pub fn read<T: Object>(json: &str) -> Result<T, Box<Unreadable>> {
    let wrong = match serde_json::from_str::<T>(json) {
        Ok(object) => return named(object),
        Err(error) => error,
    };
    // Only what is wrong is read twice, to say where.
    let found = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json));
    let reason = explain::<T>(found, &wrong);
    Err(Box::new(Unreadable { metadata: Metadata::identity(json), reason }))
}

/// Reads the object that `value` is.
///
/// # Errors
///
/// If a field that is used has another type, or the object has no name.
pub fn read_value<T: Object>(value: &Value) -> Result<T, Box<Unreadable>> {
    let wrong = match T::deserialize(value) {
        Ok(object) => return named(object),
        Err(error) => error,
    };
    let metadata = value.get("metadata").map(Metadata::identity_in).unwrap_or_default();
    let reason = explain::<T>(serde_path_to_error::deserialize(value), &wrong);
    Err(Box::new(Unreadable { metadata, reason }))
}

fn named<T: Object>(object: T) -> Result<T, Box<Unreadable>> {
    if object.metadata().name().is_empty() {
        let metadata = object.metadata().clone();
        let reason = "it has no metadata.name".to_owned();
        return Err(Box::new(Unreadable { metadata, reason }));
    }
    Ok(object)
}

/// The field that is wrong, and how; a value alone has no lines.
fn explain<T>(
    found: Result<T, serde_path_to_error::Error<serde_json::Error>>,
    error: &serde_json::Error,
) -> String {
    let text = match found {
        Err(found) => format!("{}: {}", found.path(), found.inner()),
        Ok(_) => error.to_string(),
    };
    shorten(text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text))
}

/// `text`, or its beginning if it is long.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(REASON) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A list; `null` is an empty one, and `null` in it an empty element.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    let items = Option::<Vec<Option<T>>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(items.into_iter().map(Option::unwrap_or_default).collect())
}

/// A map of texts; `null` is an empty one, and `null` in it an empty text.
fn map<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let map = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    let texts = map.unwrap_or_default().into_iter();
    Ok(texts.map(|(key, value)| (key, value.unwrap_or_default())).collect())
}

/// A value; `null` is its zero.
fn zero<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
