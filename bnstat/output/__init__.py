"""Output for people and programs: text, HTML, notebooks, TensorBoard, JSON, CSV and SARIF."""
