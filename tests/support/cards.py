"""A card as the Hub keeps it beside a published model, with figures that nobody measured."""

CARD = """---
license: apache-2.0
model-index:
- name: resnet10_cifar_w16
  results:
  - task: {type: image-classification}
    dataset: {type: uoft-cs/cifar100, name: CIFAR-100, split: test}
    metrics:
    - {type: accuracy, name: top-1 accuracy, value: 0.3032, args: {num_images: 10000}}
    - {type: accuracy, name: top-5 accuracy, value: 0.6244, args: {num_images: 10000}}
---

# A small network
"""
