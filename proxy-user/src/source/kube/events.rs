//! Events: what the owner of an object should see, in `kubectl describe`.

use super::connect;
use crate::model::Notice;
use crate::source::Closed;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::{Client, Error};
use serde_json::Value;
use std::error::Error as StdError;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const COMPONENT: &str = "shunt";
/// How long an API server may take to take an event.
const ANSWER: Duration = Duration::from_secs(30);

/// What the owner of an object should see of it.
#[derive(Debug)]
pub(super) struct ObjectEvent {
    /// The object's group and version.
    pub(super) api_version: &'static str,
    /// Its kind.
    pub(super) kind: &'static str,
    /// Its namespace, if it has one.
    pub(super) namespace: Option<String>,
    /// Its name.
    pub(super) name: String,
    /// Its UID, by which `kubectl describe` finds the event.
    pub(super) uid: Option<String>,
    /// The version of the object that it is about, if it is about one.
    pub(super) version: Option<String>,
    /// Why, in one word.
    pub(super) reason: &'static str,
    /// What happened.
    pub(super) message: String,
    /// Whether it is so on this node alone. What every node finds alike becomes one Event.
    pub(super) of_node: bool,
}

/// Makes a Warning event of each of `notices`, until their sender is gone.
pub(in crate::source) async fn publish(
    kubeconfig: Option<&Path>,
    node_name: &str,
    mut notices: Receiver<Notice>,
) {
    while let Some(notice) = notices.recv().await {
        let event = ObjectEvent {
            api_version: "v1",
            kind: "Service",
            namespace: Some(notice.service.namespace.to_string()),
            name: notice.service.name.to_string(),
            uid: None,
            version: None,
            reason: notice.reason,
            message: notice.message,
            of_node: notice.of_node,
        };
        tell_one(kubeconfig, node_name, event).await;
    }
}

/// Makes a Warning event of each of `events`, for ever.
pub(super) async fn tell(
    kubeconfig: Option<&Path>,
    node_name: &str,
    mut events: Receiver<ObjectEvent>,
) -> Closed {
    while let Some(event) = events.recv().await {
        tell_one(kubeconfig, node_name, event).await;
    }
    Closed
}

/// An event that the API server does not take is logged: it says nothing that the status does
/// not.
async fn tell_one(kubeconfig: Option<&Path>, node_name: &str, event: ObjectEvent) {
    let subject = format!("{} {}", event.kind, event.name);
    let creating = async {
        let client = connect(kubeconfig).await?.client;
        create(client, node_name, event).await.map_err(Box::<dyn StdError>::from)
    };
    let error: Box<dyn StdError> = match timeout(ANSWER, creating).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(late) => late.into(),
    };
    tracing::warn!(error = &*error, subject, "no event could be made");
}

async fn create(client: Client, node_name: &str, event: ObjectEvent) -> Result<(), Error> {
    // Those on objects of the cluster lie in `default`.
    let namespace = event.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let uid = match event.uid {
        Some(uid) => Some(uid),
        None => uid_of_service(&client, &namespace, &event.name).await?,
    };
    let now = Timestamp::now();
    let (number, message) = if event.of_node {
        (now.as_nanosecond(), format!("node {node_name}: {}", event.message))
    } else {
        // Every node makes the same Event, and the first one is taken.
        let mut digest = DefaultHasher::new();
        (&uid, event.reason, &event.message, &event.version).hash(&mut digest);
        (digest.finish().into(), event.message)
    };
    let made = Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{number:x}", event.name)),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(event.api_version.into()),
            kind: Some(event.kind.into()),
            namespace: event.namespace,
            name: Some(event.name),
            uid,
            ..ObjectReference::default()
        },
        type_: Some("Warning".into()),
        reason: Some(event.reason.into()),
        message: Some(message),
        source: Some(EventSource {
            component: Some(COMPONENT.into()),
            host: Some(node_name.into()),
        }),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    let body = serde_json::to_vec(&made).map_err(Error::SerdeError)?;
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/events"));
    let request = request.create(&PostParams::default(), body).map_err(Error::BuildRequest)?;
    match client.request_text(request).await {
        // Another agent has said it.
        Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
        answer => answer.map(drop),
    }
}

/// The UID alone is read: the rest of the Service may be what is wrong.
async fn uid_of_service(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/services"));
    let request = request.get(name, &GetParams::default()).map_err(Error::BuildRequest)?;
    match client.request::<Value>(request).await {
        Ok(service) => Ok(service["metadata"]["uid"].as_str().map(Into::into)),
        Err(Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
