//! The text of a manifest in, its Services, EndpointSlices, Nodes, ServiceCIDRs, pods and what else
//! has names out.
//!
//! YAML or JSON, several documents, lists of objects. Other kinds are passed over. A document or
//! an object of a list that cannot be read is a [`Fault`]; the others are read all the same.

use crate::model::{Node, OptedOut, Service, Slice};
use crate::source::convert::Converter;
use crate::source::objects::{self, Object, read_value, shorten};
use ipnetwork::IpNetwork;
use serde_json::Value;
use std::collections::BTreeSet;
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

/// What cannot be read of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The line, from 1 on.
    pub(super) line: usize,
    /// The reason.
    pub(super) reason: String,
}

/// Reads `text`.
pub(super) fn read(text: &str, converter: &mut Converter) -> (Manifest, Vec<Fault>) {
    let (mut manifest, mut faults) = (Manifest::default(), Vec::new());
    for (line, document) in documents(text) {
        match parse(document) {
            Ok(value) => manifest.add(value, converter, &mut |reason| {
                // Values have no lines; reading the object from the text tells where it goes wrong.
                let line = typed_error(document).map_or(line, |error| line_of(line, &error));
                faults.push(Fault { line, reason });
            }),
            Err(error) => {
                let reason = shorten(&error.to_string());
                faults.push(Fault { line: line_of(line, &error), reason });
            }
        }
    }
    (manifest, faults)
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

fn line_of(first_line: usize, error: &serde_yaml_ng::Error) -> usize {
    first_line + error.location().map_or(1, |location| location.line()) - 1
}

fn typed_error(document: &str) -> Option<serde_yaml_ng::Error> {
    let value = parse(document).ok()?;
    match (text(&value, "apiVersion"), text(&value, "kind")) {
        ("v1", "Service") => serde_yaml_ng::from_str::<objects::Service>(document).err(),
        ("v1", "Node") => serde_yaml_ng::from_str::<objects::Node>(document).err(),
        ("v1", "Pod") => serde_yaml_ng::from_str::<objects::Pod>(document).err(),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            serde_yaml_ng::from_str::<objects::EndpointSlice>(document).err()
        }
        (NETWORKING, "ServiceCIDR") => {
            serde_yaml_ng::from_str::<objects::ServiceCidr>(document).err()
        }
        _ => None,
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

impl Manifest {
    /// Adds of `before` what is missing here: it may be in what cannot be read.
    pub(super) fn keep(&mut self, before: Self) {
        keep_named(&mut self.services, before.services, |service| &service.name);
        keep_named(&mut self.slices, before.slices, |slice| &slice.name);
        keep_named(&mut self.nodes, before.nodes, |node| &node.name);
        keep_named(&mut self.service_cidrs, before.service_cidrs, |cidr| cidr);
        keep_named(&mut self.namespaces, before.namespaces, |name| name);
        for pod in before.opted_out {
            if !self.opted_out.contains(&pod) {
                self.opted_out.push(pod);
            }
        }
        self.corefile = self.corefile.take().or(before.corefile);
    }

    /// Adds the object or the list `value`; tells `fault` of each object that cannot be read.
    fn add(&mut self, mut value: Value, converter: &mut Converter, fault: &mut impl FnMut(String)) {
        let item_kind = match (text(&value, "apiVersion"), text(&value, "kind")) {
            ("v1", "Service") => {
                let object: Option<objects::Service> = typed(&value, fault);
                self.services.extend(object.and_then(|object| converter.service(&object)));
                return;
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                let object: Option<objects::EndpointSlice> = typed(&value, fault);
                self.slices.extend(object.and_then(|object| converter.slice(&object)));
                return;
            }
            ("v1", "Pod") => {
                let Some(object) = typed::<objects::Pod>(&value, fault) else { return };
                let opted_out = converter.opted_out(&object);
                self.opted_out.extend(object.spec.node_name.map(|node| (node, opted_out)));
                return;
            }
            ("v1", "Node") => {
                let object: Option<objects::Node> = typed(&value, fault);
                self.nodes.extend(object.map(|object| converter.node(&object)));
                return;
            }
            (NETWORKING, "ServiceCIDR") => {
                let object: Option<objects::ServiceCidr> = typed(&value, fault);
                let cidrs = object.map(|object| converter.service_cidrs(&object));
                self.service_cidrs.extend(cidrs.into_iter().flatten());
                return;
            }
            ("v1", "Namespace") => {
                let object: Option<objects::Namespace> = typed(&value, fault);
                self.namespaces.extend(object.map(|object| converter.namespace(&object)));
                return;
            }
            ("v1", "ConfigMap") => {
                let object: Option<objects::ConfigMap> = typed(&value, fault);
                let corefile = object.and_then(|object| converter.corefile(&object));
                self.corefile = corefile.or(self.corefile.take());
                return;
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
            _ => return,
        };
        let Some(Value::Array(items)) = value.get_mut("items").map(Value::take) else { return };
        for mut item in items {
            if let (Some((version, kind)), Value::Object(fields)) = (item_kind, &mut item) {
                fields.insert("apiVersion".into(), version.into());
                fields.insert("kind".into(), kind.into());
            }
            self.add(item, converter, fault);
        }
    }
}

fn typed<T: Object>(value: &Value, fault: &mut impl FnMut(String)) -> Option<T> {
    match read_value(value) {
        Ok(object) => Some(object),
        Err(unreadable) => {
            fault(format!("{}: {}", unreadable.subject::<T>(), unreadable.reason));
            None
        }
    }
}

/// Adds what of `before` has a name that `now` lacks.
fn keep_named<T, N: Ord + Clone>(now: &mut Vec<T>, before: Vec<T>, name: impl Fn(&T) -> &N) {
    let known: BTreeSet<N> = now.iter().map(|object| name(object).clone()).collect();
    now.extend(before.into_iter().filter(|object| !known.contains(name(object))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> String {
        let (manifest, faults) = read(text, &mut Converter::default());
        assert_eq!(faults, [], "{text}");
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
        let cidrs = texts.map(|text| read(text, &mut Converter::default()).0.service_cidrs);
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
            let (_, faults) = read(text, &mut Converter::default());
            let [fault] = faults.as_slice() else { panic!("{text}: {faults:?}") };
            assert_eq!(fault.line, line, "{text}: {fault:?}");
            assert!(fault.reason.contains(reason), "{text}: {fault:?}");
        }
    }

    #[test]
    fn objects_beside_one_that_cannot_be_read_are_read() {
        let good =
            |name: &str| format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}");
        let bad = "{apiVersion: v1, kind: Node, metadata: {name: bad}, spec: 7}";
        let list = format!("{{apiVersion: v1, kind: List, items: [{}, {bad}]}}", good("c"));
        let text =
            format!("{}\n---\n{bad}\n---\na: [\n---\n{}\n---\n{list}\n", good("a"), good("b"));
        let (manifest, faults) = read(&text, &mut Converter::default());
        let names: Vec<_> = manifest.nodes.iter().map(|node| &*node.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
        assert_eq!(lines, [3, 6, 8], "{faults:?}");
        assert!(faults[2].reason.starts_with("Node bad: spec"), "{faults:?}");
    }

    #[test]
    fn what_is_missing_beside_a_fault_stays_and_what_is_there_counts() {
        let node = |name: &str, cidr: &str| {
            format!(
                "--- {{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, spec: {{podCIDR: {cidr}}}}}\n"
            )
        };
        let mut converter = Converter::default();
        let (before, _) =
            read(&(node("a", "10.0.1.0/24") + &node("b", "10.0.2.0/24")), &mut converter);
        let (mut now, faults) =
            read(&(node("a", "10.0.3.0/24") + &node("b", "[]")), &mut converter);
        assert_eq!(faults.len(), 1, "{faults:?}");
        now.keep(before);
        let nodes: Vec<_> =
            now.nodes.iter().map(|node| format!("{} {}", node.name, node.pod_cidrs[0])).collect();
        assert_eq!(nodes, ["a 10.0.3.0/24", "b 10.0.2.0/24"]);
    }
}
