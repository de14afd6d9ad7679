//! Ask a model that the daemon serves; the answer comes as it is generated.

use std::io::{IsTerminal, Read, Write};

use drophammer_client::api::{ChatChunk, ChatMessage, ChatRequest, ChatRole};
use futures::StreamExt;

use super::print;
use crate::arguments::Run;
use crate::failure::{Exit, Failure, Result};

/// The longest prompt that is read from standard input, bytes.
const PROMPT_LIMIT: u64 = 16 << 20;

pub(super) async fn run(arguments: Run) -> Result<()> {
    let prompt = match arguments.prompt {
        Some(prompt) => prompt,
        None => piped()?,
    };
    let request = ChatRequest {
        model: arguments.model,
        messages: vec![ChatMessage { role: ChatRole::User, content: prompt }],
        max_tokens: arguments.tokens,
        temperature: arguments.temperature,
        seed: arguments.seed,
        ..ChatRequest::default()
    };
    let client = super::daemon::client()?;
    let answer = client.chat(&request).await?;
    tokio::pin!(answer);
    while let Some(chunk) = answer.next().await {
        if let ChatChunk::Text(text) = chunk? {
            print(&text);
            let _ = std::io::stdout().flush();
        }
    }
    print("\n");
    Ok(())
}

/// The prompt from standard input, unless that is a terminal.
fn piped() -> Result<String> {
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(Failure::new(Exit::Usage, "there is no prompt", "give one, or pipe one in"));
    }
    let mut prompt = String::new();
    input
        .take(PROMPT_LIMIT)
        .read_to_string(&mut prompt)
        .map_err(|error| Failure::io("standard input".as_ref(), &error))?;
    Ok(prompt)
}
