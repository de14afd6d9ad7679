//! What happens, told to everyone who listens.

use drophammer_client::api::Event;
use tokio::sync::broadcast;

/// Events kept for a listener that is slow; one that falls further behind is told to read everything again.
const BACKLOG: usize = 1024;

/// The daemon's news.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }
}

impl Events {
    /// Tells everyone. Costs nothing while nobody listens.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        if self.listeners() > 0 {
            // Fails when the last listener has just gone.
            let _ = self.sender.send(event());
        }
    }

    /// Everything told from now on.
    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }
}
