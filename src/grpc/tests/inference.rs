//! `Generate` and `GenerateStream`: shapes, ends, aborts, deadlines, slow readers.

use super::*;
use quire_proto::vllm::decoding_parameters::{StringChoices, StructuredOutput};
use quire_proto::vllm::finish_info::{FinishReason, StopReason};

/// Sequence `index` of a stream put together; checks what holds for every stream.
fn sequence(messages: &[GenerateResponse], index: u32) -> SequenceOutput {
    let first = &messages[0];
    assert!(first.prompt_info.is_some() && first.outputs.is_none(), "the first has prompt_info only");
    let mut whole = SequenceOutput { index, ..Default::default() };
    for message in &messages[1..] {
        assert!(message.prompt_info.is_none(), "prompt_info is sent once");
        let part = message.outputs.clone().expect("later messages have outputs");
        if part.index == index {
            assert!(whole.finish_info.is_none(), "news of a sequence after its end");
            super::super::translate::append(&mut whole, part);
        }
    }
    assert_eq!(whole.finish_info.as_ref().expect("an end").num_output_tokens, whole.num_tokens);
    whole
}

#[tokio::test]
async fn a_stream_tells_of_the_prompt_then_of_tokens_then_of_the_end() {
    let server = TestServer::start(Options::default()).await;
    let prompt: Vec<u32> = (10..50).collect();
    let mut asked = request(&prompt, 12);
    asked.response = Some(ResponseOptions {
        prompt_token_ids: true,
        prompt_logprobs: true,
        output_token_ids: true,
        output_logprobs: true,
        ..Default::default()
    });
    let (messages, end) = server.stream(asked.clone()).await;
    end.unwrap();
    let info = messages[0].prompt_info.as_ref().unwrap();
    assert_eq!((info.num_prompt_tokens, &info.token_ids), (40, &prompt));
    assert_eq!((info.logprobs.len(), info.ranks.len()), (40, 40));
    assert_eq!((info.logprobs[0], info.ranks[0]), (0.0, 0), "nothing precedes the first token");
    assert_eq!((info.logprobs[1], info.ranks[1]), (-1.0, 1));
    let output = sequence(&messages, 0);
    assert_eq!((output.num_tokens, output.token_ids.len()), (12, 12));
    assert_eq!((output.logprobs.len(), output.ranks.len()), (12, 12));
    assert_eq!(output.text, server.app.tokenizer.decode(&output.token_ids, true));
    let finish = output.finish_info.clone().unwrap();
    assert_eq!(finish.finish_reason(), FinishReason::Length);
    assert_eq!((finish.stop_reason, finish.num_cached_tokens), (None, Some(0)));

    let unary = server.inference().generate(asked).await.unwrap().into_inner();
    let whole = unary.outputs.unwrap();
    assert_eq!((whole.token_ids, whole.text), (output.token_ids, output.text));
    assert_eq!(unary.prompt_info.unwrap().logprobs.len(), 40);
    server.settled().await;
}

#[tokio::test]
async fn only_what_is_asked_for_is_sent() {
    let server = TestServer::start(Options::default()).await;
    let mut asked = request(&[7, 8, 9], 5);
    asked.response = None;
    let text_only = server.inference().generate(asked.clone()).await.unwrap().into_inner().outputs.unwrap();
    assert!(!text_only.text.is_empty(), "text is on by default");
    assert!(text_only.token_ids.is_empty() && text_only.logprobs.is_empty());
    asked.response = Some(ResponseOptions { output_text: Some(false), ..Default::default() });
    let nothing = server.inference().generate(asked).await.unwrap().into_inner();
    let output = nothing.outputs.unwrap();
    assert_eq!((output.num_tokens, output.text.as_str()), (5, ""));
    let info = nothing.prompt_info.unwrap();
    assert_eq!((info.num_prompt_tokens, info.token_ids.len(), info.logprobs.len()), (3, 0, 0));
}

#[tokio::test]
async fn text_is_tokenized_and_truncated_from_the_left() {
    let server = TestServer::start(Options::default()).await;
    let tokens = server.app.tokenizer.encode("The quick brown fox jumps", true).unwrap();
    let mut asked = request(&[], 1);
    asked.prompt = Some(Prompt::Text("The quick brown fox jumps".into()));
    asked.response = Some(ResponseOptions { prompt_token_ids: true, ..Default::default() });
    let whole = server.inference().generate(asked.clone()).await.unwrap().into_inner();
    assert_eq!(whole.prompt_info.unwrap().token_ids, tokens);
    asked.truncate_prompt_tokens = 2;
    let cut = server.inference().generate(asked).await.unwrap().into_inner();
    assert_eq!(cut.prompt_info.unwrap().token_ids, tokens[tokens.len() - 2..]);
}

#[tokio::test]
async fn stop_tokens_and_stop_strings_are_named_at_the_end() {
    let server = TestServer::start(Options::default()).await;
    let free = sequence(&server.stream(request(&[3, 4, 5], 30)).await.0, 0);
    let mut asked = request(&[3, 4, 5], 30);
    let stop = free.token_ids[6];
    asked.stopping.as_mut().unwrap().stop_token_ids = vec![stop];
    let stopped = sequence(&server.stream(asked).await.0, 0);
    let finish = stopped.finish_info.unwrap();
    assert_eq!(finish.finish_reason(), FinishReason::Stop);
    assert_eq!(finish.stop_reason, Some(StopReason::StopTokenId(stop)));
    assert_eq!(stopped.token_ids.last(), Some(&stop));

    let chars: Vec<char> = free.text.chars().collect();
    let word: String = chars[chars.len() / 2..chars.len() / 2 + 4].iter().collect();
    let mut asked = request(&[3, 4, 5], 30);
    asked.stopping.as_mut().unwrap().stop_strings = vec![word.clone()];
    // Found even if the client does not want the text.
    asked.response.as_mut().unwrap().output_text = Some(false);
    let stopped = sequence(&server.stream(asked.clone()).await.0, 0);
    let finish = stopped.finish_info.unwrap();
    assert_eq!(finish.stop_reason, Some(StopReason::StopString(word.clone())));
    assert_eq!(stopped.text, "");
    asked.response = None;
    let text = sequence(&server.stream(asked).await.0, 0).text;
    assert_eq!(Some(text.as_str()), free.text.split(word.as_str()).next());
}

#[tokio::test]
async fn sequences_of_a_request_come_mixed_and_end_each() {
    let server = TestServer::start(Options::default()).await;
    let mut asked = request(&(10..300).collect::<Vec<_>>(), 20);
    asked.sampling.as_mut().unwrap().num_sequences = 3;
    asked.response.as_mut().unwrap().prompt_logprobs = true;
    let (messages, end) = server.stream(asked).await;
    end.unwrap();
    let outputs: Vec<_> = (0..3).map(|index| sequence(&messages, index).token_ids).collect();
    assert!(outputs[0] != outputs[1] && outputs[1] != outputs[2]);
    assert_eq!(messages[0].prompt_info.as_ref().unwrap().logprobs.len(), 290);
    server.settled().await;
}

#[tokio::test]
async fn a_cached_prefix_is_counted_and_can_be_bypassed() {
    let server = TestServer::start(Options::default()).await;
    let cached = async |kv: Option<KvCacheParameters>| {
        let request = GenerateRequest { kv, ..request(&(0..64).collect::<Vec<_>>(), 2) };
        let whole = server.inference().generate(request).await.unwrap().into_inner();
        whole.outputs.unwrap().finish_info.unwrap().num_cached_tokens.unwrap()
    };
    let salt = |salt: &str| KvCacheParameters { cache_salt: salt.into(), ..Default::default() };
    assert_eq!(cached(None).await, 0);
    assert_eq!(cached(None).await, 48, "full blocks, never the last token");
    assert_eq!(cached(Some(salt("mine"))).await, 0);
    assert_eq!(cached(Some(salt("mine"))).await, 48);
    assert_eq!(cached(Some(KvCacheParameters { bypass_prefix_cache: true, ..Default::default() })).await, 0);
}

#[tokio::test]
async fn invariant_6_a_client_that_leaves_aborts_its_request() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    let mut stream = server.inference().generate_stream(request(&[1; 100], 3000)).await.unwrap().into_inner();
    for _ in 0..3 {
        stream.message().await.unwrap().unwrap();
    }
    assert_eq!(server.app.engine.num_in_flight(), 1);
    drop(stream);
    server.settled().await;
    // The same while a unary call waits.
    let mut client = server.inference();
    let call = tokio::spawn(async move { client.generate(request(&[1; 100], 3000)).await });
    while server.app.engine.stats().scheduler().num_running == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    call.abort();
    server.settled().await;
}

#[tokio::test]
async fn the_deadline_holds_inside_the_stream() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    let mut call = tonic::Request::new(request(&[1; 10], 4000));
    call.set_timeout(Duration::from_millis(200));
    let mut stream = server.inference().generate_stream(call).await.unwrap().into_inner();
    let began = std::time::Instant::now();
    let mut num_tokens = 0;
    let status = loop {
        match stream.message().await {
            Ok(Some(message)) => num_tokens += message.outputs.map_or(0, |output| output.num_tokens),
            Ok(None) => panic!("ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(num_tokens > 0 && began.elapsed() < Duration::from_secs(2), "{num_tokens}");
    server.settled().await;
}

#[tokio::test]
async fn a_slow_reader_gets_fewer_and_larger_messages() {
    let server = TestServer::start_with_window(Options::default(), Some(1024)).await;
    let mut stream = server.inference().generate_stream(request(&[1; 10], 4000)).await.unwrap().into_inner();
    // Nobody reads, and the engine finishes all the same.
    server.settled().await;
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(message);
    }
    let output = sequence(&messages, 0);
    assert_eq!(output.token_ids.len(), 4000);
    assert!(messages.len() < 1000, "{} messages for 4000 tokens", messages.len());
}

#[tokio::test]
async fn an_operator_aborts_by_the_clients_name() {
    let server = TestServer::start(Options { step_ms: 5, ..Options::default() }).await;
    for by_metadata in [false, true] {
        let mut call = tonic::Request::new(request(&[1; 10], 4000));
        if by_metadata {
            call.metadata_mut().insert("x-request-id", "my request".parse().unwrap());
        } else {
            call.get_mut().request_id = "my request".into();
        }
        let response = server.inference().generate_stream(call).await.unwrap();
        let echo = response.metadata().get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
        assert_eq!(echo.as_deref(), by_metadata.then_some("my request"));
        let mut stream = response.into_inner();
        let mut messages = vec![stream.message().await.unwrap().unwrap()];
        let ids = vec!["unknown".into(), "my request".into()];
        server.control().abort(AbortRequest { request_ids: ids }).await.unwrap();
        while let Some(message) = stream.message().await.unwrap() {
            messages.push(message);
        }
        let finish = sequence(&messages, 0).finish_info.unwrap();
        assert_eq!(finish.finish_reason(), FinishReason::Aborted);
        server.settled().await;
    }
}

/// The choice has ended where `min_new_tokens` does not let it end.
#[tokio::test]
async fn a_request_that_contradicts_itself_is_an_invalid_argument() {
    let server = TestServer::start(Options::default()).await;
    let choices = StringChoices { choices: vec!["yes".into()] };
    let asks = |min_new_tokens, allowed_token_ids| GenerateRequest {
        decoding: Some(DecodingParameters {
            structured_output: Some(StructuredOutput::Choice(choices.clone())),
            allowed_token_ids,
            ..Default::default()
        }),
        stopping: Some(StoppingCriteria { max_new_tokens: 50, min_new_tokens, ..Default::default() }),
        ..request(&[1, 2], 50)
    };
    for (min_new_tokens, allowed_token_ids, num_messages) in [(40, vec![], None), (0, vec![1], Some(0))] {
        let (messages, end) = server.stream(asks(min_new_tokens, allowed_token_ids.clone())).await;
        let status = end.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("grammar"), "{status:?}");
        let num_tokens: usize =
            messages.iter().filter_map(|m| m.outputs.as_ref()).map(|o| o.token_ids.len()).sum();
        assert!(num_messages.is_none_or(|expected| expected == num_tokens), "{num_tokens}");
        let whole = server.inference().generate(asks(min_new_tokens, allowed_token_ids)).await;
        assert_eq!(whole.unwrap_err().code(), Code::InvalidArgument);
    }
    server.settled().await;
}

#[tokio::test]
async fn a_failed_request_is_an_internal_error() {
    let failures = SimFailures { row: 10_000, ..SimFailures::default() };
    let server = TestServer::start(Options { failures, ..Options::default() }).await;
    let (_, end) = server.stream(request(&[1, 2], 5)).await;
    let status = end.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("injected"), "{status:?}");
    assert_eq!(server.inference().generate(request(&[1], 5)).await.unwrap_err().code(), Code::Internal);
    server.settled().await;
}
