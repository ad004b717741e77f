//! The text of a manifest in, its Services, EndpointSlices, Nodes, ServiceCIDRs, pods and what else
//! has names out.
//!
//! YAML or JSON, several documents, lists of objects. Other kinds are passed over. One document
//! that cannot be read makes the whole text unreadable: half a file is not what was meant.

use crate::model::{Node, OptedOut, Service, Slice};
use crate::source::convert::Converter;
use ipnetwork::IpNetwork;
use k8s_openapi::api::{
    core::v1 as core, discovery::v1 as discovery, networking::v1 as networking,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

const NETWORKING: &str = "networking.k8s.io/v1";

/// What one file says.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// Its Services.
    pub(super) services: Vec<Service>,
    /// Its EndpointSlices.
    pub(super) slices: Vec<Slice>,
    /// Its Nodes.
    pub(super) nodes: Vec<Node>,
    /// The networks of its ServiceCIDRs.
    pub(super) service_cidrs: Vec<IpNetwork>,
    /// What its pods opt out of, with their nodes.
    pub(super) opted_out: Vec<(String, OptedOut)>,
    /// Its Namespaces.
    pub(super) namespaces: Vec<Arc<str>>,
    /// Its Corefile.
    pub(super) corefile: Option<Arc<str>>,
}

/// Why a text cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The line, from 1 on.
    pub(super) line: usize,
    /// The reason.
    pub(super) reason: String,
}

/// Reads `text`.
pub(super) fn read(text: &str, converter: &mut Converter) -> Result<Manifest, Unreadable> {
    let mut manifest = Manifest::default();
    for (line, document) in documents(text) {
        let value = parse(document).map_err(|error| located(line, &error))?;
        manifest.add(value, converter).map_err(|reason| {
            // Values have no lines; reading the object from the text tells where it goes wrong.
            typed_error(document).map_or(Unreadable { line, reason }, |error| located(line, &error))
        })?;
    }
    Ok(manifest)
}

/// The documents of a YAML stream, each with the line that it begins on (YAML 1.2, 9.1.2).
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut begin, mut begin_line, mut offset) = (0, 1, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.strip_prefix("---");
        if marker.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            documents.push((begin_line, &text[begin..offset]));
            (begin, begin_line) = (offset, i + 1);
        }
        offset += line.len();
    }
    documents.push((begin_line, &text[begin..]));
    // Before the first marker there may be directives.
    documents.retain(|(_, text)| {
        text.lines().any(|line| !line.is_empty() && !line.starts_with(['#', '%']))
    });
    documents
}

/// JSON is YAML, but its own parser is ten times as fast.
fn parse(document: &str) -> Result<Value, serde_yaml_ng::Error> {
    if document.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(document)
    {
        return Ok(value);
    }
    serde_yaml_ng::from_str(document)
}

fn located(first_line: usize, error: &serde_yaml_ng::Error) -> Unreadable {
    let line = error.location().map_or(1, |location| location.line());
    Unreadable { line: first_line + line - 1, reason: error.to_string() }
}

fn typed_error(document: &str) -> Option<serde_yaml_ng::Error> {
    let value = parse(document).ok()?;
    match (text(&value, "apiVersion"), text(&value, "kind")) {
        ("v1", "Service") => serde_yaml_ng::from_str::<core::Service>(document).err(),
        ("v1", "Node") => serde_yaml_ng::from_str::<core::Node>(document).err(),
        ("v1", "Pod") => serde_yaml_ng::from_str::<core::Pod>(document).err(),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            serde_yaml_ng::from_str::<discovery::EndpointSlice>(document).err()
        }
        (NETWORKING, "ServiceCIDR") => {
            serde_yaml_ng::from_str::<networking::ServiceCIDR>(document).err()
        }
        _ => None,
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Manifest {
    fn add(&mut self, mut value: Value, converter: &mut Converter) -> Result<(), String> {
        let kind = (text(&value, "apiVersion"), text(&value, "kind"));
        let item_kind = match kind {
            ("v1", "Service") => {
                let object: core::Service = typed(value)?;
                self.services.extend(converter.service(&object));
                return Ok(());
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                let object: discovery::EndpointSlice = typed(value)?;
                self.slices.extend(converter.slice(&object));
                return Ok(());
            }
            ("v1", "Pod") => {
                let object: core::Pod = typed(value)?;
                let node = object.spec.as_ref().and_then(|spec| spec.node_name.clone());
                let opted_out = converter.opted_out(&object);
                self.opted_out.extend(node.map(|node| (node, opted_out)));
                return Ok(());
            }
            ("v1", "Node") => {
                self.nodes.push(converter.node(&typed(value)?));
                return Ok(());
            }
            (NETWORKING, "ServiceCIDR") => {
                self.service_cidrs.extend(converter.service_cidrs(&typed(value)?));
                return Ok(());
            }
            ("v1", "Namespace") => {
                self.namespaces.push(converter.namespace(&typed(value)?));
                return Ok(());
            }
            ("v1", "ConfigMap") => {
                self.corefile = converter.corefile(&typed(value)?).or(self.corefile.take());
                return Ok(());
            }
            ("v1", "List") => None,
            ("v1", "ServiceList") => Some(("v1", "Service")),
            ("v1", "NamespaceList") => Some(("v1", "Namespace")),
            ("v1", "ConfigMapList") => Some(("v1", "ConfigMap")),
            ("v1", "NodeList") => Some(("v1", "Node")),
            (NETWORKING, "ServiceCIDRList") => Some((NETWORKING, "ServiceCIDR")),
            ("v1", "PodList") => Some(("v1", "Pod")),
            ("discovery.k8s.io/v1", "EndpointSliceList") => {
                Some(("discovery.k8s.io/v1", "EndpointSlice"))
            }
            _ => return Ok(()),
        };
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else {
            return Ok(());
        };
        for mut item in items {
            if let (Some((version, kind)), Value::Object(fields)) = (item_kind, &mut item) {
                fields.insert("apiVersion".into(), version.into());
                fields.insert("kind".into(), kind.into());
            }
            self.add(item, converter)?;
        }
        Ok(())
    }
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let subject = format!("{} {name}", text(&value, "kind"));
    if name.is_empty() {
        return Err(format!("a {subject}has no metadata.name"));
    }
    serde_json::from_value(value).map_err(|error| format!("{subject}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> String {
        let manifest = read(text, &mut Converter::default()).unwrap();
        let services = manifest.services.iter().map(|service| service.name.to_string());
        let slices = manifest.slices.iter().map(|slice| slice.name.to_string());
        let nodes = manifest.nodes.iter().map(|node| node.name.to_string());
        services.chain(slices).chain(nodes).collect::<Vec<_>>().join(" ")
    }

    const SLICE: &str = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
                         metadata: {name: s, labels: {kubernetes.io/service-name: web}}}";

    #[test]
    fn every_way_to_write_objects_is_read() {
        let cases = [
            ("", ""),
            ("# nothing\n", ""),
            ("---\n---\n", ""),
            ("{apiVersion: v1, kind: Service, metadata: {name: a}}", "default/a"),
            (
                "{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\"}}",
                "default/a",
            ),
            ("%YAML 1.2\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n}\n...\n", "n"),
            (
                "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: x}\n--- # two\n\
              apiVersion: v1\nkind: Service\nmetadata: {name: b}\n---",
                "x/a default/b",
            ),
            ("{apiVersion: v1, kind: ServiceList, items: [{metadata: {name: a}}]}", "default/a"),
            ("{apiVersion: v1, kind: NodeList, items: [{metadata: {name: n}}]}", "n"),
            ("{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: a}}", ""),
            ("{apiVersion: apps/v1, kind: Deployment, spec: {replicas: many}}", ""),
            ("{some: [settings]}", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(names(text), expected, "{text}");
        }
        let list = format!("{{apiVersion: v1, kind: List, items: [{SLICE}, {{kind: Pod}}]}}");
        assert_eq!(names(&list), "default/s");
    }

    #[test]
    fn service_cidrs_are_read_alone_and_in_lists() {
        let texts = [
            "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, \
             spec: {cidrs: [10.96.0.0/12, 'fd00:96::/112', nonsense]}}",
            "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDRList, items: \
             [{metadata: {name: more}, spec: {cidrs: [10.112.0.0/16]}}]}",
        ];
        let cidrs = texts.map(|text| read(text, &mut Converter::default()).unwrap().service_cidrs);
        let texts = cidrs.map(|cidrs| cidrs.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(texts, [vec!["10.96.0.0/12", "fd00:96::/112"], vec!["10.112.0.0/16"]]);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let cases = [
            ("a: b\n---\n\nc: [\n", 5, "did not find"),
            (
                "kind: x\n---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - port: http\n",
                8,
                "http",
            ),
            ("\napiVersion: v1\nkind: Service\nmetadata: {}\n", 1, "metadata.name"),
            (
                "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Node, metadata: {name: n}, spec: 7}]}",
                1,
                "Node n",
            ),
        ];
        for (text, line, reason) in cases {
            let error = read(text, &mut Converter::default()).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error:?}");
            assert!(error.reason.contains(reason), "{text}: {error:?}");
        }
    }
}
