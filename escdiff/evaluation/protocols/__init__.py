"""The field's protocols on people's own pictures: DreamBench, the set-up of P+, any folder with a list of prompts."""
