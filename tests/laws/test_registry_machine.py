"""The registry against a plain dict model, over generated stories (see `story_kit`)."""

from hypothesis import settings
from story_kit import Story

TestStory = Story.TestCase
TestStory.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
