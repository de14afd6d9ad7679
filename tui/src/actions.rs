//! The registry of everything one can do.
//!
//! One [`Entry`] per action. Keys, hint bar, help, command palette and mouse all read this list, so
//! none of them can promise what another does not do.

/// Declares [`Action`] and its [`REGISTRY`] together, so that no action can lack its entry.
macro_rules! actions {
    ($($group:ident { $($action:ident, $name:literal, [$($key:literal),*], $hint:literal, $about:literal;)+ })+) => {
        /// Something one can do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Action { $($(#[doc = $about] $action,)+)+ }

        /// Every action, in the order of the help page.
        pub const REGISTRY: &[Entry] = &[$($(Entry {
            action: Action::$action,
            group: Group::$group,
            name: $name,
            keys: &[$($key),*],
            hint: $hint,
            about: $about,
        },)+)+];
    };
}

/// What is known about an action.
#[derive(Debug)]
pub struct Entry {
    /// The action.
    pub action: Action,
    /// Where it belongs in the help page.
    pub group: Group,
    /// Its name in the key table of the configuration.
    pub name: &'static str,
    /// Keys it has unless the configuration says otherwise.
    pub keys: &'static [&'static str],
    /// One or two words for the hint bar.
    pub hint: &'static str,
    /// A sentence for help and palette.
    pub about: &'static str,
}

/// Chapters of the help page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Which view is shown.
    Views,
    /// Moving about.
    Move,
    /// Finding.
    Find,
    /// Jobs and models.
    Forge,
    /// Artifacts.
    Artifacts,
    /// Plugins.
    Plugins,
    /// Chat.
    Chat,
    /// The program itself.
    Program,
}

impl Group {
    /// The chapter's title.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Views => "Views",
            Self::Move => "Move",
            Self::Find => "Find",
            Self::Forge => "Forge",
            Self::Artifacts => "Artifacts",
            Self::Plugins => "Plugins",
            Self::Chat => "Chat",
            Self::Program => "Program",
        }
    }
}

actions! {
    Views {
        GoForge, "view.forge", ["1"], "Forge", "Show the jobs: what is being forged and how far";
        GoModels, "view.models", ["2"], "Models", "Show every artifact and what was measured of it";
        GoHardware, "view.hardware", ["3"], "Hardware", "Show how the machine is doing";
        GoPlugins, "view.plugins", ["4"], "Plugins", "Show the backends and what they miss";
        GoChat, "view.chat", ["5"], "Chat", "Talk to a served model";
        GoRequests, "view.requests", ["6"], "Requests", "Show live API traffic";
        NextPane, "pane.next", ["tab"], "next pane", "Go to the next pane of this view";
        PreviousPane, "pane.previous", ["shift+tab"], "previous pane", "Go to the previous pane of this view";
        Zoom, "pane.zoom", ["z"], "zoom", "Give this pane the whole view, or take it back";
    }
    Move {
        Up, "move.up", ["up", "k"], "up", "Move up";
        Down, "move.down", ["down", "j"], "down", "Move down";
        Left, "move.left", ["left", "h"], "fold", "Fold, or move left";
        Right, "move.right", ["right", "l"], "unfold", "Unfold, or move right";
        PageUp, "move.page_up", ["pageup", "ctrl+b"], "page up", "Move a page up";
        PageDown, "move.page_down", ["pagedown", "ctrl+f"], "page down", "Move a page down";
        Top, "move.top", ["home", "g"], "top", "Move to the first line";
        Bottom, "move.bottom", ["end", "G"], "bottom", "Move to the last line";
        Open, "open", ["enter"], "open", "Open what is selected";
        Back, "back", ["esc"], "back", "Go back, close, or clear the filter";
    }
    Find {
        Filter, "find.filter", ["/"], "filter", "Show only lines that contain some text";
        NextMatch, "find.next", ["n"], "next match", "Go to the next line of the log that matches";
        PreviousMatch, "find.previous", ["N"], "previous match", "Go to the previous line of the log that matches";
        Follow, "log.follow", ["F"], "follow", "Keep the newest line of the log in sight, or stop";
        Sort, "sort.column", ["o"], "sort", "Sort by the next column";
        Reverse, "sort.reverse", ["O"], "reverse", "Sort the other way round";
    }
    Forge {
        Add, "model.add", ["a"], "add model", "Bring a model into the watched folder";
        ForgeMore, "model.forge", ["f"], "forge more", "Choose further targets for this model";
        CancelJob, "job.cancel", ["x"], "cancel", "Stop this job";
        RetryJob, "job.retry", ["r"], "retry", "Queue this job again";
    }
    Artifacts {
        Serve, "artifact.serve", ["s"], "serve", "Load this artifact so that requests reach it, or unload it";
        Pin, "artifact.pin", ["p"], "pin", "Load this artifact and keep it loaded whatever else needs memory, or take that back";
        ChatWith, "artifact.chat", ["c"], "chat", "Talk to this artifact";
        Compare, "artifact.compare", ["space", "v"], "compare", "Mark this artifact for comparison; two marks show the difference";
        Delete, "artifact.delete", ["D"], "delete", "Remove this artifact from the library, after asking";
    }
    Plugins {
        Reload, "plugin.reload", ["r"], "reload", "Probe this plugin again in a new process";
    }
    Chat {
        Write, "chat.write", ["i"], "write", "Write a message";
        Send, "chat.send", ["enter"], "send", "Send the message";
        StopAnswer, "chat.stop", ["ctrl+x"], "stop", "Stop the answer being generated";
        PickModel, "chat.model", ["m"], "model", "Choose the artifact to talk to";
        PickSecond, "chat.second", ["v"], "side by side", "Choose a second artifact that answers beside the first, or dismiss it";
        ChatSettings, "chat.settings", ["o"], "settings", "Set system prompt, temperature, top-p, length and seed";
        NewChat, "chat.new", ["ctrl+n"], "new chat", "Forget this conversation";
    }
    Program {
        Palette, "palette", [":", "ctrl+p"], "palette", "Find any action by name";
        Help, "help", ["?", "f1"], "help", "Show every key";
        Toggle, "toggle", ["space"], "mark", "Mark or unmark this line";
        Confirm, "confirm", ["enter", "y"], "confirm", "Do it";
        Copy, "copy", ["y"], "copy", "Copy what is selected to the clipboard";
        Theme, "theme.next", ["t"], "theme", "Use the next theme";
        Mouse, "mouse.toggle", ["ctrl+t"], "mouse", "Give the mouse to the terminal (to select text) or take it back";
        Redraw, "redraw", ["ctrl+l"], "redraw", "Draw everything anew";
        Quit, "quit", ["q"], "leave", "Leave; the daemon keeps running";
        Abort, "abort", ["ctrl+c"], "leave", "Leave at once, from anywhere";
    }
}

impl Action {
    /// Its entry.
    pub fn entry(self) -> &'static Entry {
        // The macro writes both in the same order.
        &REGISTRY[self as usize]
    }

    /// The action of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        REGISTRY.iter().find(|entry| entry.name == name).map(|entry| entry.action)
    }
}

/// Offered in every view, after the view's own.
pub(crate) const EVERYWHERE: &[Action] = &[
    Action::Palette,
    Action::Help,
    Action::Quit,
    Action::GoForge,
    Action::GoModels,
    Action::GoHardware,
    Action::GoPlugins,
    Action::GoChat,
    Action::GoRequests,
    Action::Theme,
    Action::Mouse,
    Action::Redraw,
    Action::Abort,
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_action_finds_its_own_entry_by_position_and_by_name() {
        let mut names = HashSet::new();
        for entry in REGISTRY {
            assert_eq!(entry.action.entry().name, entry.name);
            assert_eq!(Action::by_name(entry.name), Some(entry.action));
            assert!(names.insert(entry.name), "{} twice", entry.name);
            assert!(
                entry.about.starts_with(char::is_uppercase) && !entry.about.ends_with('.'),
                "{}",
                entry.name
            );
        }
    }
}
