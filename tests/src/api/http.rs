//! Requests: which object or list they are for, whether they are let in, and the answers.

use super::fault::{Refusal, status};
use super::kinds::{KINDS, Kind};
use super::patch::merge;
use super::selector::Selector;
use super::store::{Key, Store};
use super::watch::Watch;
use super::{Shared, State};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State as Extract};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A watch without `timeoutSeconds` lasts as long.
const WATCH_SECONDS: u64 = 1800;

/// The whole API.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().fallback(answer).with_state(shared)
}

/// A failure as a `Status` object.
type Failure = (u16, Value);

fn failure(code: u16, reason: &str, message: &str) -> Failure {
    (code, status(code, reason, message))
}

type Parameters = BTreeMap<String, String>;

/// What a URL names.
struct Target {
    kind: &'static Kind,
    namespace: Option<String>,
    name: Option<String>,
    subresource: bool,
}

impl Target {
    /// `/api/v1` or `/apis/GROUP/VERSION`, then `[/namespaces/NS]/RESOURCE[/NAME[/status]]`.
    fn new(path: &str) -> Option<Self> {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        let api_version = match parts.next()? {
            "api" => parts.next()?.to_string(),
            "apis" => format!("{}/{}", parts.next()?, parts.next()?),
            _ => return None,
        };
        let mut rest: Vec<&str> = parts.collect();
        let namespace = match rest[..] {
            ["namespaces", namespace, _, ..]
                if namespace != "status" && rest.get(2) != Some(&"status") =>
            {
                rest.drain(..2);
                Some(namespace.to_string())
            }
            _ => None,
        };
        let plural = *rest.first()?;
        let kind =
            KINDS.iter().find(|kind| kind.plural == plural && kind.api_version == api_version)?;
        let name = rest.get(1).map(ToString::to_string);
        Some(Self { kind, namespace, name, subresource: rest.len() > 2 })
    }

    fn key(&self, name: &str) -> Key {
        let namespace = self.namespace.clone().unwrap_or_default();
        (self.kind.plural, namespace, name.into())
    }
}

async fn answer(
    Extract(shared): Extract<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(token) = &shared.state().token {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if given != Some(&format!("Bearer {token}")) {
            return json_response(failure(401, "Unauthorized", "Unauthorized"));
        }
    }
    if let Some(answer) = discovery(uri.path()) {
        return json_response((200, answer));
    }
    let Some(target) = Target::new(uri.path()) else {
        let message = "the server could not find the requested resource";
        return json_response(failure(404, "NotFound", message));
    };
    let watching = matches!(parameters.get("watch").map(String::as_str), Some("true" | "1"));
    let verb = match (method.as_str(), &target.name) {
        ("GET", _) if watching => "watch",
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        _ => "delete",
    };
    let met = fault(&mut shared.state(), verb, target.kind.plural);
    match met {
        Some(Refusal::Late(delay)) => tokio::time::sleep(delay).await,
        Some(Refusal::Half | Refusal::Unmarked) | None => {}
        Some(refusal) => return refuse(refusal, verb, target.kind),
    }
    let half = met == Some(Refusal::Half);
    let result = match verb {
        "watch" => match watch(&mut shared.state(), &target, &parameters) {
            Ok(mut watch) => {
                watch.breaks_off = half;
                watch.marks_end &= met != Some(Refusal::Unmarked);
                let json = [(header::CONTENT_TYPE, "application/json")];
                return (json, watch.body(shared.clone())).into_response();
            }
            Err(failure) => Err(failure),
        },
        "list" => list(&shared.state().store, &target, &parameters),
        "get" => get(&shared.state().store, &target),
        _ => shared.write(|store| write(store, verb, &target, &headers, &body)),
    };
    let response = json_response(result.unwrap_or_else(|failure| failure));
    if half { break_off(response) } else { response }
}

/// Sends the headers, and lets the connection break.
fn break_off(response: Response) -> Response {
    let broken = stream::iter([Err::<Bytes, _>(io::Error::other("broken off"))]);
    Response::from_parts(response.into_parts().0, Body::from_stream(broken))
}

fn json_response((code, body): (u16, Value)) -> Response {
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, axum::Json(body)).into_response()
}

/// The fault that the request meets, if any.
fn fault(state: &mut State, verb: &str, resource: &str) -> Option<Refusal> {
    let met = state.faults.iter_mut().find(|fault| {
        fault.times > 0
            && (fault.verb.is_empty() || fault.verb == verb)
            && (fault.resource.is_empty() || fault.resource == resource)
    })?;
    met.times -= 1;
    Some(met.refusal)
}

fn refuse(refusal: Refusal, verb: &str, kind: &Kind) -> Response {
    let mut response = json_response(refusal.status(verb, kind.plural, kind.group()));
    if let Refusal::TooManyRequests(seconds) = refusal {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn discovery(path: &str) -> Option<Value> {
    let groups: BTreeSet<_> = KINDS.iter().map(|kind| kind.api_version).collect();
    match path.trim_end_matches('/') {
        "/healthz" | "/livez" | "/readyz" => Some("ok".into()),
        "/version" => Some(json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0-lab", "platform": "linux/amd64",
        })),
        "/api" => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => {
            let groups = groups.iter().filter_map(|group| Some((group, group.split_once('/')?)));
            let groups = groups.map(|(group_version, (name, version))| {
                let version = json!({"groupVersion": group_version, "version": version});
                json!({"name": name, "versions": [version], "preferredVersion": version})
            });
            let groups: Vec<_> = groups.collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        path => {
            let group = path.strip_prefix("/apis/").or_else(|| path.strip_prefix("/api/"))?;
            groups.contains(group).then(|| resources(group))
        }
    }
}

fn resources(group: &str) -> Value {
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let kinds = KINDS.iter().filter(|kind| kind.api_version == group);
    let resources = kinds.map(|kind| {
        let short: Vec<_> =
            Some(kind.short).filter(|short| !short.is_empty()).into_iter().collect();
        json!({
            "name": kind.plural, "singularName": kind.kind.to_lowercase(), "kind": kind.kind,
            "namespaced": kind.namespaced, "verbs": verbs, "shortNames": short,
        })
    });
    let resources: Vec<_> = resources.collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources})
}

fn selector(target: &Target, parameters: &Parameters) -> Selector {
    let text = |name: &str| parameters.get(name).map_or("", String::as_str);
    // A watch of one object by its URL is one by its name.
    let fields = match &target.name {
        Some(name) => format!("metadata.name={name}"),
        None => text("fieldSelector").into(),
    };
    Selector::new(target.namespace.clone(), text("labelSelector"), &fields)
}

fn watch(state: &mut State, target: &Target, parameters: &Parameters) -> Result<Watch, Failure> {
    let is_true =
        |name: &str| parameters.get(name).is_some_and(|value| value == "true" || value == "1");
    let version = parameters.get("resourceVersion").map_or("", String::as_str);
    let version = match version {
        "" | "0" => None,
        text => {
            Some(text.parse().map_err(|_| failure(400, "BadRequest", "invalid resource version"))?)
        }
    };
    let marks_end = is_true("sendInitialEvents");
    if version.is_some_and(|version| version > state.store.version()) {
        return Err(failure(504, "Timeout", "Too large resource version"));
    }
    state.watched_from.insert(target.kind.plural, version.unwrap_or(0));
    let seconds = parameters.get("timeoutSeconds").and_then(|text| text.parse().ok());
    Ok(Watch {
        kind: target.kind,
        selector: selector(target, parameters),
        version: version.filter(|_| !marks_end),
        marks_end,
        bookmarks: is_true("allowWatchBookmarks"),
        duration: Duration::from_secs(seconds.unwrap_or(WATCH_SECONDS)),
        breaks_off: false,
    })
}

/// A list, or a page of one. The token of the next page holds the version of the first page and
/// the last key: what changes in between is in the watch that begins at that version.
fn list(store: &Store, target: &Target, parameters: &Parameters) -> Result<(u16, Value), Failure> {
    let selector = selector(target, parameters);
    let (version, after): (u64, Option<(String, String)>) = match parameters.get("continue") {
        Some(token) if !token.is_empty() => serde_json::from_str(token)
            .map_err(|_| failure(400, "BadRequest", "the continue token is not valid"))?,
        _ => (store.version(), None),
    };
    if store.since(version).is_none() {
        return Err(failure(410, "Expired", "The provided continue parameter is too old"));
    }
    let limit =
        parameters.get("limit").and_then(|limit| limit.parse().ok()).filter(|&limit| limit > 0);
    let limit = limit.unwrap_or(usize::MAX);
    let mut found = store.objects(target.kind.plural).filter(|((_, namespace, name), object)| {
        let later = after.as_ref().is_none_or(|(ns, last)| (namespace, name) > (ns, last));
        later && selector.matches(object)
    });
    let page: Vec<_> = found.by_ref().take(limit).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if let (Some(_), Some(((_, namespace, name), _))) = (found.next(), page.last()) {
        metadata["continue"] = json!((version, (namespace, name))).to_string().into();
    }
    let items: Vec<_> = page.iter().map(|(_, object)| (***object).clone()).collect();
    let body = json!({
        "kind": format!("{}List", target.kind.kind), "apiVersion": target.kind.api_version,
        "metadata": metadata, "items": items,
    });
    Ok((200, body))
}

fn not_found(target: &Target, name: &str) -> Failure {
    failure(404, "NotFound", &format!("{} \"{name}\" not found", target.kind.plural))
}

fn get(store: &Store, target: &Target) -> Result<(u16, Value), Failure> {
    let name = target.name.as_deref().unwrap_or_default();
    let object = store.object(&target.key(name)).ok_or_else(|| not_found(target, name))?;
    Ok((200, (**object).clone()))
}

fn write(
    store: &mut Store,
    verb: &str,
    target: &Target,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(u16, Value), Failure> {
    let bad = |message: &str| failure(400, "BadRequest", message);
    if verb == "delete" {
        let name = target.name.as_deref().ok_or_else(|| bad("delete objects by name"))?;
        let object = store.delete(&target.key(name)).ok_or_else(|| not_found(target, name))?;
        return Ok((200, (*object).clone()));
    }
    // JSON is YAML; `kubectl apply --server-side` sends YAML.
    let sent: Value = serde_yaml_ng::from_slice(body).map_err(|error| bad(&error.to_string()))?;
    let sent_name = sent["metadata"]["name"].as_str().map(str::to_string);
    let name =
        target.name.clone().or(sent_name).ok_or_else(|| bad("an object needs metadata.name"))?;
    let key = target.key(&name);
    let before = store.object(&key).cloned();
    let object = match (verb, &before) {
        ("create", Some(_)) => {
            let message = format!("{} \"{name}\" already exists", target.kind.plural);
            return Err(failure(409, "AlreadyExists", &message));
        }
        ("create", None) => sent,
        ("update", Some(before)) => {
            let (old, new) =
                (&before["metadata"]["resourceVersion"], &sent["metadata"]["resourceVersion"]);
            if new.is_string() && old != new {
                return Err(failure(409, "Conflict", "the object has been modified"));
            }
            only_status(target, before, sent)
        }
        ("patch", before) => {
            let applies = headers
                .get(header::CONTENT_TYPE)
                .is_some_and(|kind| kind == "application/apply-patch+yaml");
            let mut object = match before {
                Some(before) => (**before).clone(),
                None if applies => Value::Null,
                None => return Err(not_found(target, &name)),
            };
            merge(&mut object, &sent);
            match before {
                Some(before) => only_status(target, before, object),
                None => object,
            }
        }
        _ => return Err(not_found(target, &name)),
    };
    let stored = store.put(target.kind, key, object);
    Ok((if before.is_none() { 201 } else { 200 }, (*stored).clone()))
}

/// A write to `/status` changes the status alone; another write changes all.
fn only_status(target: &Target, before: &Value, mut object: Value) -> Value {
    if !target.subresource {
        return object;
    }
    let mut kept = before.clone();
    kept["status"] = object["status"].take();
    kept
}
