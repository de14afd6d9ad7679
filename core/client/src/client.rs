//! Typed calls.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{
    AddModel, ForgeModel, Hardware, Job, Jobs, Log, ModelEntry, Models, PlanReport, PlanRequest, Plugin,
    Plugins, Requests, Served, ServedModel, Status,
};
use crate::transport::{self, DOCUMENT_LIMIT};
use crate::{ClientError, Endpoint, routes};

/// How long the daemon may think about an ordinary call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take over loading a model or planning a big one.
const WORK_TIMEOUT: Duration = Duration::from_mins(10);

/// A daemon, from outside. Cheap to clone; each call opens its own connection.
#[derive(Debug, Clone)]
pub struct Client {
    to: Arc<To>,
}

#[derive(Debug)]
struct To {
    endpoint: Endpoint,
    key: Option<String>,
}

impl Client {
    /// A client that has not spoken to the daemon yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { to: Arc::new(To { endpoint, key: None }) }
    }

    /// A client of a daemon that was seen to answer.
    ///
    /// # Errors
    /// When no daemon answers there.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, ClientError> {
        let client = Self::new(endpoint);
        client.status().await?;
        Ok(client)
    }

    /// Sends this API key with every call (daemons on TCP may ask for one).
    #[must_use]
    pub fn with_key(&self, key: impl Into<String>) -> Self {
        Self { to: Arc::new(To { endpoint: self.to.endpoint.clone(), key: Some(key.into()) }) }
    }

    /// Where the daemon is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.to.endpoint
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<hyper::Response<hyper::body::Incoming>, ClientError> {
        transport::send(&self.to.endpoint, self.to.key.as_deref(), method, path, body, timeout).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body, timeout).await?;
        let reading = transport::read_all(&self.to.endpoint, path, response, DOCUMENT_LIMIT);
        let bytes = tokio::time::timeout(timeout, reading)
            .await
            .map_err(|_| ClientError::Silent { endpoint: self.to.endpoint.clone(), after: timeout })??;
        serde_json::from_slice(&bytes)
            .map_err(|source| ClientError::Malformed { path: path.to_owned(), source })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, None, ANSWER_TIMEOUT).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, Some(encode(path, body)?), WORK_TIMEOUT).await
    }

    async fn ask(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.send(method, path, None, ANSWER_TIMEOUT).await.map(drop)
    }

    /// The daemon, its jobs in numbers and its workers.
    ///
    /// # Errors
    /// Like every call here: when the daemon cannot be reached or refuses.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(routes::STATUS).await
    }

    /// Every model and its artifacts.
    ///
    /// # Errors
    /// When the daemon cannot be reached.
    pub async fn models(&self) -> Result<Models, ClientError> {
        self.get(routes::MODELS).await
    }

    /// One model.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn model(&self, name: &str) -> Result<ModelEntry, ClientError> {
        self.get(&routes::model(name)).await
    }

    /// Brings a file or directory of the daemon's machine into its watched folder.
    ///
    /// # Errors
    /// When it is not there, or the name is taken.
    pub async fn add_model(&self, add: &AddModel) -> Result<ModelEntry, ClientError> {
        self.post(routes::ADD_MODEL, add).await
    }

    /// What could be forged from a model.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn model_plan(&self, name: &str) -> Result<PlanReport, ClientError> {
        self.call(Method::GET, &routes::model_plan(name), None, WORK_TIMEOUT).await
    }

    /// What could be forged from a path on the daemon's machine.
    ///
    /// # Errors
    /// When it is not a model.
    pub async fn plan(&self, request: &PlanRequest) -> Result<PlanReport, ClientError> {
        self.post(routes::PLAN, request).await
    }

    /// Queues jobs for a model and returns them.
    ///
    /// # Errors
    /// When there is no such model or target.
    pub async fn forge_model(&self, name: &str, forge: &ForgeModel) -> Result<Jobs, ClientError> {
        self.post(&routes::forge_model(name), forge).await
    }

    /// Every job the daemon remembers.
    ///
    /// # Errors
    /// When the daemon cannot be reached.
    pub async fn jobs(&self) -> Result<Jobs, ClientError> {
        self.get(routes::JOBS).await
    }

    /// One job.
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn job(&self, id: &str) -> Result<Job, ClientError> {
        self.get(&routes::job(id)).await
    }

    /// A job's log so far; what follows comes through [`Client::events`].
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn job_log(&self, id: &str) -> Result<Log, ClientError> {
        self.get(&routes::job_log(id)).await
    }

    /// Asks a job to stop.
    ///
    /// # Errors
    /// When there is none of that id, or it has already ended.
    pub async fn cancel_job(&self, id: &str) -> Result<Job, ClientError> {
        self.call(Method::POST, &routes::cancel_job(id), None, ANSWER_TIMEOUT).await
    }

    /// Queues a job again.
    ///
    /// # Errors
    /// When there is none of that id, or it has not ended.
    pub async fn retry_job(&self, id: &str) -> Result<Job, ClientError> {
        self.call(Method::POST, &routes::retry_job(id), None, ANSWER_TIMEOUT).await
    }

    /// Removes an artifact from the library.
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn delete_artifact(&self, id: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &routes::artifact(id)).await
    }

    /// Loads an artifact so that `/v1` answers with it; returns once it is being loaded.
    ///
    /// # Errors
    /// When there is none of that id, or it does not fit into memory.
    pub async fn serve_artifact(&self, id: &str) -> Result<ServedModel, ClientError> {
        self.call(Method::POST, &routes::serve_artifact(id), None, WORK_TIMEOUT).await
    }

    /// Unloads an artifact.
    ///
    /// # Errors
    /// When it is not loaded.
    pub async fn unserve_artifact(&self, id: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &routes::serve_artifact(id)).await
    }

    /// Loads an artifact and keeps it loaded, over restarts of the daemon too.
    ///
    /// # Errors
    /// When there is none of that id, or it does not fit into memory.
    pub async fn pin_artifact(&self, id: &str) -> Result<ServedModel, ClientError> {
        self.call(Method::POST, &routes::pin_artifact(id), None, WORK_TIMEOUT).await
    }

    /// Lets an artifact be unloaded again.
    ///
    /// # Errors
    /// When there is none of that id, or the configuration pins it.
    pub async fn unpin_artifact(&self, id: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &routes::pin_artifact(id)).await
    }

    /// The models loaded now.
    ///
    /// # Errors
    /// When the daemon cannot be reached.
    pub async fn served(&self) -> Result<Served, ClientError> {
        self.get(routes::SERVED).await
    }

    /// Every plugin found.
    ///
    /// # Errors
    /// When the daemon cannot be reached.
    pub async fn plugins(&self) -> Result<Plugins, ClientError> {
        self.get(routes::PLUGINS).await
    }

    /// Probes a plugin again.
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn reload_plugin(&self, id: &str) -> Result<Plugin, ClientError> {
        self.call(Method::POST, &routes::reload_plugin(id), None, WORK_TIMEOUT).await
    }

    /// What a plugin's probe printed.
    ///
    /// # Errors
    /// When there is none of that id.
    pub async fn plugin_log(&self, id: &str) -> Result<Log, ClientError> {
        self.get(&routes::plugin_log(id)).await
    }

    /// The newest hardware sample.
    ///
    /// # Errors
    /// When the daemon cannot be reached.
    pub async fn hardware(&self) -> Result<Hardware, ClientError> {
        self.get(routes::HARDWARE).await
    }

    /// Live API traffic.
    ///
    /// # Errors
    /// When the daemon cannot be reached; status 404 when it does not count requests.
    pub async fn requests(&self) -> Result<Requests, ClientError> {
        self.get(routes::REQUESTS).await
    }

    /// Stops the daemon once its running requests are answered.
    ///
    /// # Errors
    /// When the daemon cannot be reached.
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.ask(Method::POST, routes::SHUTDOWN).await
    }
}

pub(crate) fn encode(path: &str, body: &(impl Serialize + ?Sized)) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|source| ClientError::Malformed { path: path.to_owned(), source })
}
