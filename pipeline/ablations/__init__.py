"""The paper's central figure: accuracy against thought length and lookahead, with one DVC experiment an arm."""
