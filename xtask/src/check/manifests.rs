//! The manifests parse, hang together, and fit the agent that they start.

use super::{Findings, files, flags, read, shunt_help};
use crate::machine::root;
use anyhow::{Context as _, Result};
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The kinds that a manifest may hold.
const KINDS: [(&str, &str); 14] = [
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("kind.x-k8s.io/v1alpha4", "Cluster"),
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("v1", "ConfigMap"),
    ("v1", "Namespace"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
];

/// All that the agent may ask of the API server.
fn rules() -> Value {
    json!([
        {
            "apiGroups": [""],
            "resources": ["services", "nodes", "pods", "namespaces"],
            "verbs": ["list", "watch"]
        },
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"]
        },
        {
            "apiGroups": ["networking.k8s.io"],
            "resources": ["servicecidrs"],
            "verbs": ["list", "watch"]
        },
        {
            "apiGroups": [""],
            "resources": ["services"],
            "verbs": ["get"]
        },
        {
            "apiGroups": [""],
            "resources": ["events"],
            "verbs": ["create"]
        },
    ])
}

pub(super) fn check() -> Result<Findings> {
    let help = shunt_help(&["agent"])?.context("`shunt agent --help` prints nothing")?;
    let agent_flags = flags(&help);
    let all: BTreeSet<PathBuf> =
        files()?.into_iter().filter(|path| path.starts_with("manifests")).collect();
    let mut findings = Findings::new();
    let mut used = BTreeSet::new();
    for path in all.iter().filter(|path| path.extension().is_some_and(|end| end == "yaml")) {
        for document in serde_yaml_ng::Deserializer::from_str(&read(path)?) {
            let object = Value::deserialize(document)
                .with_context(|| format!("{} is no YAML", path.display()))?;
            let folder = path.parent().unwrap_or(Path::new(""));
            let problems = match object["kind"].as_str() {
                _ if object["apiVersion"].is_null() => setting_problems(&object, &agent_flags),
                Some("Kustomization") => {
                    let named = named_files(&object);
                    used.extend(named.iter().filter_map(|file| tidy(&folder.join(file))));
                    missing_files(folder, &named)
                }
                Some("DaemonSet") => flag_problems(&object, &agent_flags),
                Some("ClusterRole") if object["rules"] != rules() => {
                    vec!["grants other rights than the agent uses".to_owned()]
                }
                _ => kind_problem(&object).into_iter().collect(),
            };
            findings.extend(problems.iter().map(|what| format!("{} {what}", path.display())));
        }
    }
    let unnamed = all.iter().filter(|path| !used.contains(*path) && !stands_alone(path));
    findings.extend(unnamed.map(|path| format!("{} is in no kustomization", path.display())));
    Ok(findings)
}

/// Whether the file is for something else than kustomize to read.
fn stands_alone(path: &Path) -> bool {
    path.ends_with("kustomization.yaml") || path.ends_with("cluster.yaml")
}

fn kind_problem(object: &Value) -> Option<String> {
    let kind = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
    (!KINDS.contains(&kind)).then(|| format!("holds a {} of {}, an unknown kind", kind.1, kind.0))
}

/// A document without an apiVersion is a file for the agent's `--config`.
fn setting_problems(object: &Value, agent_flags: &BTreeSet<&str>) -> Findings {
    let Some(settings) = object.as_object() else {
        return vec!["is neither an object nor a file of settings".to_owned()];
    };
    let unknown = settings.keys().filter(|key| !agent_flags.contains(key.as_str()));
    unknown.map(|key| format!("sets {key}, which the agent does not know")).collect()
}

fn flag_problems(daemon_set: &Value, agent_flags: &BTreeSet<&str>) -> Findings {
    let containers = daemon_set["spec"]["template"]["spec"]["containers"].as_array();
    let args =
        containers.into_iter().flatten().filter_map(|container| container["args"].as_array());
    let words =
        args.flatten().filter_map(|arg| arg.as_str()?.strip_prefix("--")?.split('=').next());
    let unknown = words.filter(|flag| !agent_flags.contains(flag));
    unknown.map(|flag| format!("starts the agent with --{flag}, which it does not know")).collect()
}

/// The files and folders that a kustomization is made of.
fn named_files(kustomization: &Value) -> Vec<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let patches = list(&kustomization["patches"]).into_iter().map(|patch| patch["path"].clone());
    let generated = list(&kustomization["configMapGenerator"]);
    let generated = generated.iter().flat_map(|map| list(&map["files"]));
    let all = list(&kustomization["resources"]).into_iter().chain(patches).chain(generated);
    all.filter_map(|name| {
        let name = name.as_str()?;
        Some(name.split_once('=').map_or(name, |(_, file)| file).to_owned())
    })
    .collect()
}

fn missing_files(folder: &Path, named: &[String]) -> Findings {
    let exists = |file: &str| {
        let path = root().join(folder).join(file);
        path.is_file() || path.join("kustomization.yaml").is_file()
    };
    let missing = named.iter().filter(|file| !exists(file));
    missing.map(|file| format!("names {file}, which does not exist")).collect()
}

/// The path without `..`, if it stays in the tree.
fn tidy(path: &Path) -> Option<PathBuf> {
    let path = root().join(path).canonicalize().ok()?;
    path.strip_prefix(root().canonicalize().ok()?).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_flag_setting_or_kind_is_found() {
        let known = BTreeSet::from(["config", "node-name"]);
        let daemon_set = json!({ "spec": { "template": { "spec": { "containers": [
            { "args": ["agent", "--config=/x", "--nodename", "n"] }
        ] } } } });
        assert_eq!(flag_problems(&daemon_set, &known).len(), 1);
        assert_eq!(
            setting_problems(&json!({ "node-name": "n", "nodeName": "n" }), &known).len(),
            1
        );
        assert!(kind_problem(&json!({ "apiVersion": "v1", "kind": "Pod" })).is_some());
        assert!(kind_problem(&json!({ "apiVersion": "v1", "kind": "Service" })).is_none());
    }

    #[test]
    fn a_kustomization_names_its_resources_patches_and_generated_files() {
        let kustomization = json!({
            "resources": ["a.yaml", "../base"],
            "patches": [{ "path": "b.yaml" }, { "patch": "inline" }],
            "configMapGenerator": [{ "files": ["c.yaml", "key=d.yaml"] }],
        });
        let expected = ["a.yaml", "../base", "b.yaml", "c.yaml", "d.yaml"];
        assert_eq!(named_files(&kustomization), expected);
        assert_eq!(missing_files(Path::new("."), &["nowhere.yaml".to_owned()]).len(), 1);
    }
}
