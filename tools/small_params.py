"params.yaml cut down to what shows in a minute or two that every stage works; printed as YAML."
from sads_jax.core.params import dump_params, load_params

TRAINER = ('steps=8', 'batch_size=4', 'views=1', 'warmup=2', 'eval_every=4')
SMALL = ['data.n_parts=24', 'data.exposures=2', 'data.size=96', 'image.buckets=[[96, 96]]',
         'evaluate.gallery=4', 'evaluate.golden=2', 'detector.width=16', 'segmenter.width=16',
         'detector.trainer.unfreeze_steps=4', 'classifier.crop=32', 'segmenter.crop=32', 'classifier.trainer.views=1',
         *(f'{task}.trainer.{field}' for task in ('detector', 'segmenter') for field in TRAINER)]

if __name__ == '__main__': print(dump_params(load_params('params.yaml', SMALL)), end='')
