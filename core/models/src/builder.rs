//! The one decoder and the one encoder: a description, read top to bottom, becomes graph operations.

use crate::description::{Description, Experts, FeedForward, Latent, Layer, NormRule, NormSpan, Wiring};
use crate::graph::{
    Activation, AttentionSpec, ExpertSpec, Gating, Graph, Index, LatentSpec, Linear, Norm, RopeSpec, Routing,
    Scope, Table,
};
use crate::weight::Role;

/// Builds a decoder: the step's tokens to logits, one row of [`Description::vocabulary`] per wanted token.
///
/// # Errors
/// The graph's.
pub fn build_decoder<G: Graph>(graph: &mut G, description: &Description) -> Result<G::Value, G::Error> {
    let h = build_layers(graph, description, true)?;
    graph.enter(Scope::Head);
    let h = graph.wanted(&h)?;
    let h = final_norm(graph, description, h)?;
    let Some(head) = description.head else { return Ok(h) };
    let weight = Role::Head.global();
    let logits = graph.linear(
        &h,
        &Linear {
            weight,
            bias: head.bias.then(|| weight.bias()),
            inputs: description.hidden,
            outputs: description.vocabulary,
        },
    )?;
    let logits = scaled(graph, logits, head.scale)?;
    match head.softcap {
        Some(cap) => graph.softcap(&logits, cap),
        None => Ok(logits),
    }
}

/// Builds an encoder: the step's tokens to hidden states, one row of [`Description::hidden`] per token.
/// [`Graph::pool`] makes embeddings of them.
///
/// # Errors
/// The graph's.
pub fn build_encoder<G: Graph>(graph: &mut G, description: &Description) -> Result<G::Value, G::Error> {
    let h = build_layers(graph, description, false)?;
    graph.enter(Scope::Head);
    final_norm(graph, description, h)
}

fn build_layers<G: Graph>(
    graph: &mut G,
    description: &Description,
    causal: bool,
) -> Result<G::Value, G::Error> {
    graph.enter(Scope::Embedding);
    let mut h = embed(graph, description)?;
    for (number, layer) in (0..).zip(&description.layers) {
        h = LayerBuilder { graph, description, layer, number, causal }.build(h)?;
    }
    Ok(h)
}

fn embed<G: Graph>(graph: &mut G, description: &Description) -> Result<G::Value, G::Error> {
    let embedding = &description.embedding;
    let table = |role: Role, rows| Table { weight: role.global(), rows, width: description.hidden };
    let tokens = graph.embedding(&table(Role::TokenEmbedding, description.vocabulary), Index::Tokens)?;
    let mut h = scaled(graph, tokens, embedding.scale)?;
    if embedding.token_types > 0 {
        let types =
            graph.embedding(&table(Role::TokenTypeEmbedding, embedding.token_types), Index::TokenTypes)?;
        h = graph.add(&h, &types)?;
    }
    if let Some(positions) = embedding.positions {
        let index = Index::Positions { offset: positions.offset };
        let rows = graph.embedding(&table(Role::PositionEmbedding, positions.rows), index)?;
        h = graph.add(&h, &rows)?;
    }
    match embedding.norm {
        Some(rule) => graph.norm(&h, &row_norm(rule, Role::EmbeddingNorm, None, description.hidden)),
        None => Ok(h),
    }
}

fn final_norm<G: Graph>(graph: &mut G, description: &Description, h: G::Value) -> Result<G::Value, G::Error> {
    match description.final_norm {
        Some(rule) => graph.norm(&h, &row_norm(rule, Role::FinalNorm, None, description.hidden)),
        None => Ok(h),
    }
}

fn scaled<G: Graph>(graph: &mut G, x: G::Value, factor: f32) -> Result<G::Value, G::Error> {
    if factor == 1.0 { Ok(x) } else { graph.scale(&x, factor) }
}

fn row_norm(rule: NormRule, role: Role, layer: Option<u32>, width: u32) -> Norm {
    let weight = role.at(layer);
    Norm {
        kind: rule.kind,
        epsilon: rule.epsilon,
        weight: rule.weight.then_some(weight),
        bias: rule.bias.then(|| weight.bias()),
        width,
        groups: 1,
        per_group: false,
    }
}

struct LayerBuilder<'a, G> {
    graph: &'a mut G,
    description: &'a Description,
    layer: &'a Layer,
    number: u32,
    causal: bool,
}

impl<G: Graph> LayerBuilder<'_, G> {
    fn build(mut self, h: G::Value) -> Result<G::Value, G::Error> {
        let (attention, feed_forward) = (Scope::Attention(self.number), Scope::FeedForward(self.number));
        let norms = self.layer.norms;
        self.graph.enter(attention);
        let x = self.norm(&h, norms.attention, Role::AttentionNorm)?;
        let a = self.attention(&x)?;
        match self.layer.wiring {
            Wiring::Sequential => {
                let a = self.norm(&a, norms.attention_output, Role::AttentionOutputNorm)?;
                let h = self.residual(&h, a)?;
                self.graph.enter(feed_forward);
                let x = self.norm(&h, norms.feed_forward, Role::FeedForwardNorm)?;
                let f = self.feed_forward(&x)?;
                let f = self.norm(&f, norms.feed_forward_output, Role::FeedForwardOutputNorm)?;
                self.residual(&h, f)
            }
            Wiring::Parallel => {
                self.graph.enter(feed_forward);
                let own = if norms.feed_forward.is_some() { &h } else { &x };
                let x = self.norm(own, norms.feed_forward, Role::FeedForwardNorm)?;
                let f = self.feed_forward(&x)?;
                let sum = self.graph.add(&a, &f)?;
                self.residual(&h, sum)
            }
            Wiring::PostNorm => {
                let h = self.residual(&h, a)?;
                let h = self.norm(&h, norms.attention_output, Role::AttentionOutputNorm)?;
                self.graph.enter(feed_forward);
                let f = self.feed_forward(&h)?;
                let h = self.residual(&h, f)?;
                self.norm(&h, norms.feed_forward_output, Role::FeedForwardOutputNorm)
            }
        }
    }

    fn norm(&mut self, x: &G::Value, rule: Option<NormRule>, role: Role) -> Result<G::Value, G::Error> {
        match rule {
            Some(rule) => {
                self.graph.norm(x, &row_norm(rule, role, Some(self.number), self.description.hidden))
            }
            None => Ok(x.clone()),
        }
    }

    fn residual(&mut self, h: &G::Value, block: G::Value) -> Result<G::Value, G::Error> {
        let block = scaled(self.graph, block, self.layer.residual_scale)?;
        self.graph.add(h, &block)
    }

    fn linear(&self, role: Role, bias: bool, inputs: u32, outputs: u32) -> Linear {
        let weight = role.of(self.number);
        Linear { weight, bias: bias.then(|| weight.bias()), inputs, outputs }
    }

    fn attention(&mut self, x: &G::Value) -> Result<G::Value, G::Error> {
        let attention = &self.layer.attention;
        let spec = AttentionSpec {
            layer: self.number,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            key_width: attention.key_width,
            value_width: attention.value_width,
            scale: attention.scale,
            softcap: attention.softcap,
            window: attention.window,
            sinks: attention.sinks.then(|| Role::AttentionSinks.of(self.number)),
            causal: self.causal,
        };
        let mixed = match attention.latent {
            Some(latent) => self.latent_attention(x, latent, spec)?,
            None => self.plain_attention(x, &spec)?,
        };
        let inputs = attention.heads * attention.value_width;
        let output =
            self.linear(Role::AttentionOutput, attention.output_bias, inputs, self.description.hidden);
        self.graph.linear(&mixed, &output)
    }

    fn plain_attention(&mut self, x: &G::Value, spec: &AttentionSpec) -> Result<G::Value, G::Error> {
        let attention = &self.layer.attention;
        let hidden = self.description.hidden;
        let input = |role, heads, width| self.linear(role, attention.input_bias, hidden, heads * width);
        let inputs = [
            input(Role::Query, spec.heads, spec.key_width),
            input(Role::Key, spec.kv_heads, spec.key_width),
            input(Role::Value, spec.kv_heads, spec.value_width),
        ];
        let [q, k, v] = self.graph.linears(x, &inputs)?;
        let q = self.turned(q, Role::QueryNorm, spec.heads)?;
        let k = self.turned(k, Role::KeyNorm, spec.kv_heads)?;
        self.graph.attention(&q, &k, &v, spec)
    }

    fn latent_attention(
        &mut self,
        x: &G::Value,
        latent: Latent,
        spec: AttentionSpec,
    ) -> Result<G::Value, G::Error> {
        let hidden = self.description.hidden;
        let epsilon = |rule: Option<NormRule>| rule.map_or(1e-6, |rule| rule.epsilon);
        let rule = NormRule::rms(epsilon(self.layer.norms.attention));
        let (queries, mut from) = (spec.heads * spec.key_width, hidden);
        let mut q = x.clone();
        if let Some(rank) = latent.query_rank {
            q = self
                .graph
                .linear(x, &self.linear(Role::QueryDown, self.layer.attention.input_bias, hidden, rank))?;
            q = self.graph.norm(&q, &row_norm(rule, Role::QueryDownNorm, Some(self.number), rank))?;
            from = rank;
        }
        let q = self.graph.linear(&q, &self.linear(Role::Query, false, from, queries))?;
        let rotary_width = spec.key_width - latent.plain_width;
        let down = [
            self.linear(Role::LatentDown, self.layer.attention.input_bias, hidden, latent.rank),
            self.linear(Role::KeyRotary, self.layer.attention.input_bias, hidden, rotary_width),
        ];
        let [state, key] = self.graph.linears(x, &down)?;
        let state =
            self.graph.norm(&state, &row_norm(rule, Role::LatentNorm, Some(self.number), latent.rank))?;
        let q = self.rope(q, spec.heads, spec.key_width)?;
        let key = self.rope(key, 1, rotary_width)?;
        let spec = LatentSpec {
            attention: spec,
            key_up: self.linear(Role::KeyUp, false, latent.rank, spec.heads * latent.plain_width),
            value_up: self.linear(Role::ValueUp, false, latent.rank, spec.heads * spec.value_width),
            latent_width: latent.rank,
            rotary_width,
        };
        self.graph.latent_attention(&q, &state, &key, &spec)
    }

    /// Queries or keys, normalized and rotated in the architecture's order.
    fn turned(&mut self, x: G::Value, role: Role, heads: u32) -> Result<G::Value, G::Error> {
        let width = self.layer.attention.key_width;
        if self.layer.attention.query_key_norm.is_some_and(|norm| norm.after_rotation) {
            let x = self.rope(x, heads, width)?;
            self.query_key_norm(x, role, heads)
        } else {
            let x = self.query_key_norm(x, role, heads)?;
            self.rope(x, heads, width)
        }
    }

    fn query_key_norm(&mut self, x: G::Value, role: Role, heads: u32) -> Result<G::Value, G::Error> {
        let Some(norm) = self.layer.attention.query_key_norm else { return Ok(x) };
        let width = self.layer.attention.key_width;
        let (width, groups) = match norm.span {
            NormSpan::Head | NormSpan::EachHead => (width, heads),
            NormSpan::Whole => (heads * width, 1),
        };
        let per_group = norm.span == NormSpan::EachHead;
        let norm = Norm { groups, per_group, ..row_norm(norm.rule, role, Some(self.number), width) };
        self.graph.norm(&x, &norm)
    }

    /// Rotates the last of the layer's rotary numbers in each head: `Rope::start` counts from a whole head, so the bare
    /// rotary part of a latent key begins at 0.
    fn rope(&mut self, x: G::Value, heads: u32, head_width: u32) -> Result<G::Value, G::Error> {
        let ropes = &self.description.ropes;
        let Some((index, rope)) =
            self.layer.attention.rope.and_then(|index| Some((index, ropes.get(index)?)))
        else {
            return Ok(x);
        };
        let start = if head_width == self.layer.attention.key_width { rope.start } else { 0 };
        self.graph.rope(&x, &RopeSpec { heads, head_width, start, index, rope })
    }

    fn feed_forward(&mut self, x: &G::Value) -> Result<G::Value, G::Error> {
        let hidden = self.description.hidden;
        match &self.layer.feed_forward {
            FeedForward::Gated { width, gating, bias } => {
                self.gated(x, [Role::Gate, Role::Up, Role::Down], *width, *gating, *bias)
            }
            FeedForward::Plain { width, activation, bias } => {
                let up = self.graph.linear(x, &self.linear(Role::Up, *bias, hidden, *width))?;
                let up = self.graph.activate(&up, *activation)?;
                self.graph.linear(&up, &self.linear(Role::Down, *bias, *width, hidden))
            }
            FeedForward::Experts(experts) => self.experts(x, experts),
        }
    }

    fn gated(
        &mut self,
        x: &G::Value,
        [gate, up, down]: [Role; 3],
        width: u32,
        gating: Gating,
        bias: bool,
    ) -> Result<G::Value, G::Error> {
        let hidden = self.description.hidden;
        let halves = [self.linear(gate, bias, hidden, width), self.linear(up, bias, hidden, width)];
        let [gate, up] = self.graph.linears(x, &halves)?;
        let product = self.graph.gated(&gate, &up, gating)?;
        self.graph.linear(&product, &self.linear(down, bias, width, hidden))
    }

    fn experts(&mut self, x: &G::Value, experts: &Experts) -> Result<G::Value, G::Error> {
        let hidden = self.description.hidden;
        let spec = ExpertSpec {
            router: self.linear(Role::Router, experts.bias, hidden, experts.count),
            routing: Routing {
                experts: experts.count,
                used: experts.used,
                scoring: experts.scoring,
                normalize: experts.normalize,
                scale: experts.scale,
                correction: experts.correction.then(|| Role::RouterCorrection.of(self.number)),
                groups: experts.groups,
            },
            gate: self.linear(Role::ExpertGate, experts.bias, hidden, experts.width),
            up: self.linear(Role::ExpertUp, experts.bias, hidden, experts.width),
            down: self.linear(Role::ExpertDown, experts.bias, experts.width, hidden),
            gating: experts.gating,
        };
        let routed = self.graph.experts(x, &spec)?;
        let Some(shared) = experts.shared else { return Ok(routed) };
        let roles = [Role::SharedGate, Role::SharedUp, Role::SharedDown];
        let mut y = self.gated(x, roles, shared.width, experts.gating, false)?;
        if shared.scored {
            let score = self.graph.linear(x, &self.linear(Role::SharedScore, false, hidden, 1))?;
            let score = self.graph.activate(&score, Activation::Sigmoid)?;
            y = self.graph.mul(&y, &score)?;
        }
        self.graph.add(&routed, &y)
    }
}
