"""Every spelling of an operation between two layers, and what is expected of it: conv -> OP -> conv.

A spelling is an expression over h, the output of a convolution, (2, 8, 6, 6), and m, the network that it stands in. The
expectation is the number of quantizers between the two layers, in front of the second one's own:

  0           the values are only moved: codes go through, in the first layer's range
  1, 2, ...   so many tensors are computed, each with a range of its own
  a text      a float island, with this reason; what is quantized is its output, for the second layer
"""

# ruff: noqa: E501 - a table

from __future__ import annotations

import ast
import operator  # noqa: F401 - spellings use it, as they use F

import torch
import torch.nn.functional as F  # noqa: F401
from torch import Tensor, nn

MOVED = """
    h.clone() torch.clone(h) h.contiguous() h.detach() torch.detach(h) +h torch.positive(h) h.positive() nn.Identity()(h) nn.Dropout()(h) nn.Dropout2d()(h) nn.AlphaDropout()(h)
    F.dropout(h,0.5,m.training) F.dropout(h,training=m.training) F.dropout2d(h,p=0.1,training=m.training) F.dropout(h,0.5,False) F.alpha_dropout(h,training=m.training)
    h.float() h.to(torch.float32) h.to(h.dtype) h.to("cpu") h.to(h.device) h.type(torch.float32) h.type_as(h) h.cpu()
    h.view(2,-1,6) h.view(h.size(0),4,-1) h.view_as(h) h.reshape(2,-1) h.reshape((2,-1)) h.reshape(h.shape[0],-1) torch.reshape(h,(2,-1)) h.reshape_as(h) h.flatten(1) h.flatten(start_dim=2) torch.flatten(h,1)
    nn.Flatten()(h) nn.Flatten(2,3)(h) nn.Unflatten(1,(2,4))(h) h.unflatten(1,(2,4)) torch.unflatten(h,1,(2,4)) h.ravel() torch.ravel(h) torch.atleast_2d(h)
    h.permute(0,2,3,1) h.permute((0,2,3,1)) torch.permute(h,(0,2,3,1)) torch.permute(h,dims=(0,3,2,1)) h.transpose(1,2) torch.transpose(h,1,2) torch.transpose(input=h,dim0=1,dim1=2) h.swapaxes(1,2) torch.swapdims(h,1,2)
    h.movedim(1,3) torch.movedim(h,1,3) torch.moveaxis(h,1,3) h.moveaxis(1,3) h.mT h[0,0].T h[0,0].t() torch.t(h[0,0]) h.adjoint() torch.adjoint(h)
    h.squeeze(0) torch.squeeze(h) h.unsqueeze(1) torch.unsqueeze(h,0) h[:1].squeeze(0).unsqueeze(0)
    h.flip(1) h.flip(2,3) torch.flip(h,[1]) torch.fliplr(h) h.flipud() torch.rot90(h,1,(2,3)) h.rot90(1,[2,3]) torch.roll(h,1) torch.roll(h,(1,2),(2,3)) h.roll(1,2)
    h.repeat(1,2,1,1) h.tile((1,2)) torch.tile(h,(1,2)) h.repeat_interleave(2,1) torch.repeat_interleave(h,2,dim=2) h[:,:1].expand(2,4,6,6) h[:,:1].expand(-1,4,-1,-1) h[:,:1].expand_as(h) torch.broadcast_to(h,(3,2,8,6,6)) h.broadcast_to((3,2,8,6,6))
    h[0] h[:,1:5] h[:,::2] h[...,0] h[:,None] h[:,-1] h[:,[0,2]] h[:,:,1:-1,1:-1] h[:,torch.tensor([1,0])] h[:,:m.count]
    h.narrow(1,0,4) torch.narrow(h,1,0,4) h.select(1,0) torch.select(h,2,3) h.index_select(1,m.index) torch.index_select(h,1,m.index) h.gather(1,m.places) torch.gather(h,1,m.places) h.take(m.index) torch.take(h,m.index)
    torch.take_along_dim(h,m.places,1) h.take_along_dim(m.places,1) h.masked_select(m.mask) h[m.mask.expand(2,8,6,6)] h.diagonal(0,2,3) torch.diagonal(h,dim1=2,dim2=3) h.unfold(2,3,1)
    h.chunk(2,1)[0] torch.chunk(h,2,1)[1] torch.split(h,4,1)[0] h.split([2,6],1)[1] h.split(4,dim=1)[0] torch.split(h,[2,6],dim=1)[0] h.unbind(1)[2] torch.unbind(h,1)[0] torch.tensor_split(h,3,1)[0] h.tensor_split((2,4),1)[1] torch.hsplit(h,2)[0] h.vsplit(2)[1] torch.dsplit(h,3)[0] h.hsplit(2)[1] h.split_with_sizes([3,5],1)[1]
    torch.cat(torch.chunk(h,2,1),1) torch.cat(h.chunk(2,1)) torch.cat(torch.split(h,[3,5],1),1) torch.cat(h.split(4,1),dim=1) torch.cat(h.unbind(1)) torch.stack(h.unbind(1),1)
    torch.cat([h,h],1) torch.cat(tensors=[h,h],dim=1) torch.cat((h,h)) torch.concat([h,h]) torch.concatenate([h,h],1) torch.stack([h,h]) torch.stack((h,h),dim=1) torch.hstack((h,h)) torch.vstack([h,h]) torch.dstack((h,h)) torch.column_stack((h,h)) torch.row_stack((h,h))
    F.pad(h,(1,1)) F.pad(h,(1,2,0,1)) F.pad(h,(1,1,1,1),value=0.0) F.pad(h,(1,1),"constant",0) F.pad(h,(1,1,1,1),"reflect") F.pad(h,(1,1,1,1),mode="replicate") F.pad(h,(1,1,1,1),"circular") F.pad(h,[0,-1])
    nn.ZeroPad2d(1)(h) nn.ConstantPad2d(1,0.0)(h) nn.ReflectionPad2d(1)(h) nn.ReplicationPad2d(1)(h) nn.CircularPad2d(1)(h)
    nn.MaxPool2d(2)(h) F.max_pool2d(h,2) F.max_pool2d(h,3,stride=2,padding=1) torch.max_pool2d(h,2) F.adaptive_max_pool2d(h,3) nn.AdaptiveMaxPool2d(2)(h)
    nn.Upsample(scale_factor=2)(h) nn.Upsample(12)(h) nn.UpsamplingNearest2d(scale_factor=2)(h) F.interpolate(h,scale_factor=2) F.interpolate(h,size=(9,9),mode="nearest") F.interpolate(h,h.shape[2:]) F.interpolate(h,(9,9),mode="nearest-exact") F.upsample(h,scale_factor=2) F.upsample_nearest(h,scale_factor=2)
    nn.PixelShuffle(2)(h) F.pixel_shuffle(h,2) nn.PixelUnshuffle(2)(h) F.pixel_unshuffle(h,2) nn.ChannelShuffle(2)(h) torch.channel_shuffle(h,2) F.unfold(h,3) F.unfold(h,3,padding=1) nn.Unfold(2,stride=2)(h)
    h.amax(1) torch.amax(h,(2,3)) h.amin((2,3),keepdim=True) torch.amin(h,1) h.max(1)[0] h.max(1).values torch.max(h,1)[0] torch.max(h,dim=2,keepdim=True)[0] h.min(dim=-1).values torch.min(h,1)[0] h.max(1,True)[0]
    torch.maximum(h,h.flip(1)) h.maximum(h.flip(1)) torch.max(h,h.flip(1)) h.min(h.flip(1)) torch.fmax(h,h.flip(1)) torch.minimum(h,h.roll(1,1))
    torch.where(m.mask,h,h.flip(1)) torch.where(h>0,h,0.0) torch.where(m.mask,h,0) torch.where(m.mask,0.0,h) h.where(m.mask,h.flip(1)) h.where(h>0,0) h.masked_fill(m.mask,0) h.masked_fill(h<0,0.0) torch.masked_fill(h,m.mask,value=0.0)
    h.index_fill(1,m.index,0) torch.index_fill(h,1,m.index,0.0) h.tril() torch.tril(h) torch.triu(h,1) h.triu(diagonal=-1) torch.diag_embed(h) torch.diag(h[0,0])
    h.scatter(1,m.places,h.flip(1)) torch.scatter(h,1,m.places,h) h.scatter(1,m.places,0.0) h.index_copy(1,m.index,h[:,:4]) torch.index_put(h,(m.rows,),h.flip(0)) h.masked_scatter(m.mask,h.flip(1)) torch.slice_scatter(h,h[:,:4],1,0,4) h.select_scatter(h[:,1],1,0)
    torch.index_copy(h,1,m.index,h[:,:4]) torch.masked_scatter(h,m.mask,h.flip(1)) torch.select_scatter(h,h[:,1],1,0) h.slice_scatter(h[:,:4],1,0,4) torch.diagonal_scatter(h,h[:,0],0,1,3) h.diagonal_scatter(h[:,0],0,1,3) h.index_put((m.rows,),h.flip(0))
    torch.masked_select(h,m.mask) torch.atleast_1d(h) torch.atleast_3d(h) h.narrow_copy(1,0,4) torch.narrow_copy(h,1,0,4) torch.native_channel_shuffle(h,2) h.diag_embed() torch.diagflat(h[0,0,0]) h[0,0,0].diagflat() h[0,0].diag() torch.split_with_sizes(h,[3,5],1)[0] torch.vsplit(h,2)[0] h.dsplit(2)[0] torch.unsafe_chunk(h,2,1)[0] h.unsafe_chunk(2,1)[1] torch.unsafe_split(h,4,1)[0] h.unsafe_split(4,1)[1]
    F.dropout1d(h[0],training=m.training) F.feature_alpha_dropout(h,training=m.training) h.fmin(h.flip(1)) torch.fliplr(h) torch.flipud(h) torch.channel_shuffle(h,4)
    h.data h.amax(-1) h.squeeze_(0) h.unsqueeze_(1) h.transpose_(1,2) h[0,0].t_() h.masked_fill_(m.mask,0)
"""

ABSORBED = """
    F.batch_norm(h,m.mean,m.var) F.relu(h) torch.relu(h) h.relu() nn.ReLU()(h) nn.ReLU(inplace=True)(h) F.relu(h,inplace=True) F.relu_(h) torch.relu_(h) h.relu_() F.relu6(h) nn.ReLU6()(h) F.hardtanh(h) F.hardtanh(h,-0.5,0.5) nn.Hardtanh(-0.3,0.6)(h) F.hardtanh_(h)
    h.clamp(-0.4,0.4) torch.clamp(h,min=-0.2) h.clamp(max=0.3) h.clip(0,1) torch.clip(h,-0.5,0.5) h.clamp_min(0) torch.clamp_min(h,-0.1) h.clamp_max(0.5) torch.clamp_max(h,0.3) h.clamp_(0,6) torch.clamp_(h,-0.3,0.3) h.clip_(0,1)
"""

COMPUTED = """
    h+1 1+h h+h h.add(h) torch.add(h,h) torch.add(h,1) torch.add(h,h,alpha=0.5) h.add(other=h) h.add_(h.flip(1)) operator.add(h,2) operator.iadd(h,1) h-1 1-h h-h.flip(1) h.sub(h.flip(1)) torch.sub(h,0.3) torch.subtract(h,h.flip(1)) torch.rsub(h,1) h.sub_(1) operator.isub(h,1)
    h*2 2*h h*h h.mul(h) torch.mul(h,0.3) torch.multiply(h,h.flip(1)) h.mul_(0.5) operator.imul(h,3) h*m.mask h/2 h.div(2) torch.true_divide(h,3) h.divide(0.7) h.div_(2) operator.itruediv(h,2) -h torch.neg(h) h.neg() h.negative() h.neg_() h*h.flip(1)
    h**2 torch.pow(h,2) h.pow(2) h.square() torch.square(h) h.pow(2.0) h.pow(exponent=2) h**3 torch.pow(h,3) 2**h torch.pow(2.0,h) h.pow(3) h.abs() torch.abs(h) abs(h) torch.absolute(h) h.absolute() h.abs_() torch.abs_(h)
    h.exp() torch.exp(h) torch.exp2(h) h.expm1() torch.erf(h) h.erf() torch.sin(h) h.cos() torch.atan(h) h.sinh() torch.asinh(h) h.exp_() torch.exp_(h) h.floor() torch.floor(h) torch.ceil(h) h.round() torch.round(h) h.trunc() h.sign() torch.sgn(h) torch.frac(h) torch.nan_to_num(h) torch.hypot(h,h.flip(1))
    h.sigmoid() torch.sigmoid(h) F.sigmoid(h) nn.Sigmoid()(h) h.sigmoid_() torch.sigmoid_(h) torch.special.expit(h) h.tanh() torch.tanh(h) F.tanh(h) nn.Tanh()(h) h.tanh_() F.hardsigmoid(h) nn.Hardsigmoid()(h) F.softmax(h,1) F.softmax(h,dim=-1) torch.softmax(h,1) h.softmax(dim=1) nn.Softmax(1)(h) nn.Softmax2d()(h) F.softmin(h,1) nn.Softmin(1)(h) F.softsign(h) nn.Softsign()(h)
    F.silu(h) nn.SiLU()(h) F.silu(h,inplace=True) nn.SiLU(inplace=True)(h) F.gelu(h) F.gelu(h,approximate="tanh") nn.GELU()(h) nn.GELU("tanh")(h) F.mish(h) nn.Mish()(h) F.hardswish(h) nn.Hardswish()(h) F.leaky_relu(h,0.1) nn.LeakyReLU(0.2)(h) F.leaky_relu_(h) F.elu(h) nn.ELU()(h) F.elu_(h) F.selu(h) nn.SELU()(h) F.celu(h) nn.CELU()(h) F.selu_(h) F.celu_(h) F.softplus(h) nn.Softplus()(h) F.prelu(h,m.slope) nn.PReLU()(h) torch.prelu(h,m.slope) h.prelu(m.slope)
    F.logsigmoid(h) nn.LogSigmoid()(h) F.hardshrink(h) h.hardshrink() nn.Hardshrink()(h) F.softshrink(h,0.1) nn.Softshrink()(h) F.tanhshrink(h) nn.Tanhshrink()(h) F.threshold(h,0.1,0.3) nn.Threshold(0.1,-0.2)(h) F.threshold_(h,0.1,0.3) F.rrelu(h) nn.RReLU()(h) F.rrelu_(h)
    h.mean(1) torch.mean(h,(2,3)) h.mean((2,3),keepdim=True) h.sum(1) torch.sum(h,dim=2) h.nansum(1) h.cumsum(1) torch.cumsum(h,2) h.prod(3) torch.prod(h,3) h.var(1) torch.var(h,(2,3)) h.std(1,keepdim=True) torch.std(h,1) h.norm(dim=1) torch.norm(h,dim=1) torch.linalg.norm(h,dim=1) torch.linalg.vector_norm(h,dim=1) h.logsumexp(1) torch.logsumexp(h,1)
    F.normalize(h) F.normalize(h,dim=-1) F.cosine_similarity(h,h.flip(1)) nn.CosineSimilarity()(h,h.flip(1)) F.pairwise_distance(h,h.flip(1)) nn.PairwiseDistance()(h,h.flip(1)) torch.cdist(h,h.flip(1))
    nn.AvgPool2d(2)(h) F.avg_pool2d(h,2) F.avg_pool2d(h,3,1,1) nn.AdaptiveAvgPool2d(1)(h) F.adaptive_avg_pool2d(h,2) nn.LPPool2d(2,2)(h) F.lp_pool2d(h,2,2) nn.LPPool1d(2,2)(h[:,0]) F.lp_pool1d(h[:,0],2,2) nn.LPPool3d(2,2)(h.unsqueeze(1)) F.lp_pool3d(h.unsqueeze(1),2,2) nn.CrossMapLRN2d(3)(h) F.fold(h.reshape(2,8,36),(7,7),(2,2)) nn.Fold((7,7),(2,2))(h.reshape(2,8,36))
    nn.LayerNorm(6)(h) F.layer_norm(h,(6,)) F.layer_norm(h,[6,6]) nn.GroupNorm(2,8)(h) F.group_norm(h,2) nn.InstanceNorm2d(8)(h) F.instance_norm(h) nn.RMSNorm(6)(h) F.rms_norm(h,(6,)) nn.LocalResponseNorm(3)(h) F.local_response_norm(h,3)
    nn.Upsample(scale_factor=2,mode="bilinear")(h) F.interpolate(h,scale_factor=2,mode="bilinear") F.interpolate(h,(9,9),mode="bicubic") nn.UpsamplingBilinear2d(scale_factor=2)(h) F.upsample_bilinear(h,scale_factor=2) F.grid_sample(h,m.grid) F.grid_sample(h,m.grid,align_corners=False)
    F.pad(h,(1,1),value=0.7) nn.ConstantPad2d(1,0.4)(h) h.masked_fill(m.mask,0.4) torch.where(m.mask,h,0.4) torch.where(h>0,1.0,h) h.index_fill(1,m.index,0.5) h.scatter(1,m.places,0.5) h.scatter_add(1,m.places,h) torch.scatter_add(h,1,m.places,h.flip(1)) h.index_add(1,m.index,h[:,:4]) torch.lerp(h,h.flip(1),0.3) h.lerp(h.flip(1),0.3) h.index_put((m.rows,),h,accumulate=True)
    torch.matmul(h,h.mT) h@h.mT h.matmul(h.mT) torch.bmm(h[0],h[0].mT) h[0].bmm(h[0].mT) torch.mm(h[0,0],h[0,1]) h[0,0].mm(h[0,1]) h@h[0,0,0] torch.mv(h[0,0],h[0,0,0]) h[0,0].mv(h[0,0,1]) h[0,0,0]@h[0,0] operator.matmul(h,h.mT)
    h[0,0,0].dot(h[0,0,1]).unsqueeze(0) torch.dot(h[0,0,0],h[0,0,1]).unsqueeze(0) torch.negative(h) torch.nansum(h,1) torch.index_add(h,1,m.index,h[:,:4]) h.cumprod(1) torch.cumprod(h,3) h.logcumsumexp(1) torch.logcumsumexp(h,1) h.hypot(h.flip(1)) F.threshold(h,0.2,0.1)
    torch.threshold(h,0.1,0.3) torch.rrelu(h) torch.rms_norm(h,(6,)) torch.sigmoid(input=h) torch.dist(h,h.flip(1)).unsqueeze(0) h.dist(h.flip(1)).unsqueeze(0) torch.fix(h) h.fix() h.ceil() h.frac() h.sgn() h.nan_to_num() torch.sign(h) torch.trunc(h)
    torch.einsum("bchw,bcxw->bchx",h,h.flip(1)) torch.einsum("bchw,bdhw->bcd",h,h) torch.einsum("...hw,...xw->...hx",h,h) torch.einsum("bchw,bchw->bchw",h,h) torch.einsum("bchw,bchw->b",h,h).unsqueeze(1) torch.einsum("bchw->bc",h) torch.outer(h[0,0,0],h[0,0,1]) torch.addmm(h[0,0],h[0,1],h[0,2],beta=0)
"""

UNARY = "exp exp2 expm1 log1p sqrt rsqrt reciprocal erf erfc sin cos tan asin acos atan sinh cosh asinh atanh arcsin arccos arctan sinc"
STEPS = {  # more than one tensor is computed
    **{spelling: 3 for name in UNARY.split() for spelling in (f"torch.{name}(h.sigmoid()*0.9)", f"(h.sigmoid()*0.9).{name}()")},
    "torch.div(h,h.sigmoid()+1).sum(1)": 4, "h+m.table": 2, "m.table*h": 2, "h-m.scalar": 2, "torch.reciprocal(h.exp()+1)": 3, "nn.Sequential(nn.Tanhshrink(),nn.BatchNorm2d(8))(h)": 2, "torch.matmul(h,m.weights[0])": 2, "h@m.weights[0]": 2,
    "F.glu(h,1)": 2, "nn.GLU(1)(h)": 2, "torch.addcmul(h,h,h.flip(1))": 2, "h.addcmul(h,h,value=0.5)": 3, "torch.addcdiv(h,h,h.sigmoid()+1)": 4,
    "torch.addmm(h[0,0],h[0,1],h[0,2])": 2, "torch.baddbmm(h[0],h[0],h[1],beta=0.5,alpha=2)": 4, "h[0].baddbmm(h[0],h[1])": 2, "h*h.sigmoid()": 2,
    "h/h.norm(dim=1,keepdim=True)": 2, "h.exp()/h.exp().sum(1,True)": 4, "torch.bilinear(h,h.flip(1),m.weights,m.bias)": 5, "nn.Bilinear(6,6,4)(h,h)": 5, "torch.cat([h,h.sigmoid()],1)": 2,
}  # fmt: skip

LAYERS = """
    F.linear(h,m.matrix,m.bias) F.linear(h,m.matrix) h@m.matrix.t() h@m.matrix.T h@m.matrix.mT torch.matmul(h,m.matrix.transpose(0,1)) h.matmul(m.square) h@m.square torch.mm(h[0,0],m.square) h[0,0].mm(m.matrix.t()) F.linear(h,m.square.t())
    torch.addmm(m.bias,h[0,0],m.matrix.t()) torch.addmm(m.six,h[0,0],m.square) torch.einsum("bchw,wx->bchx",h,m.square) torch.einsum("bchw,xw->bchx",h,m.matrix) torch.einsum("...w,wx->...x",h,m.square) F.conv2d(h,m.kernel,m.bias) torch.conv2d(h,m.kernel) h[:,0]@m.square
"""  # a third layer, between the two

LOGARITHM = "what is near zero counts most, and one scale for the whole range loses it"
PLACES = "it works on values and their places together"
MAKES = "it makes numbers and reads none"
MARKS = "it holds numbers that mark places, which no range may hold"
CALL = "more than a product of two matrices; traced models have einsum and bilinear written out where they come to one"
ISLANDS = {
    "torch.log(h.exp())": LOGARITHM, "h.exp().log2()": LOGARITHM, "torch.logit(h.sigmoid())": LOGARITHM,
    "F.log_softmax(h,1)": "its small differences near zero are what a loss looks at, and one scale for the whole range loses them",
    "h.log_softmax(1)": "its small differences near zero are what a loss looks at, and one scale for the whole range loses them",
    "h.sort(1)[0]": PLACES, "torch.topk(h,3,1)[0]": PLACES, "h.topk(3,dim=1).values": PLACES, "h.median(1)[0]": PLACES, "h.cummax(1)[0]": PLACES, "torch.aminmax(h,dim=1)[0]": PLACES,
    "F.max_pool2d(h,2,return_indices=True)[0]": PLACES, "nn.MaxPool2d(2,return_indices=True)(h)[0]": PLACES,
    "torch.var_mean(h,1)[0]": "it gives two tensors of different ranges in one call", "torch.std_mean(h,1)[1]": "it gives two tensors of different ranges in one call",
    "torch.einsum('bchw,bchx,bchy->bwxy',h,h,h)": CALL, "torch.einsum('bchh->bch',h)": CALL, "torch.inner(h,h)": CALL, "torch.tensordot(h,h,([3],[3]))[0,0]": CALL,
    "torch.fft.fft(h).real": "complex numbers have no codes", "h.double().float()": "another floating type", "h.half().float()": "another floating type", "h.to(torch.float64).to(torch.float32)": "another floating type, or values that are drawn anew at each call",
    "torch.linalg.inv(h+torch.eye(6)*9)": "its steps need more than 8 bits",
    "h.masked_fill(m.mask,float('-inf')).softmax(-1)": MARKS, "torch.where(m.mask,h,-1e9).softmax(-1)": MARKS, "(h+torch.full((6,6),float('-inf')).triu(1)).softmax(-1)": MARKS, "(h+m.causal).softmax(-1)": MARKS, "(h+(1.0-(h>-1).float())*-1e4).softmax(-1)": MARKS,
    "F.max_pool2d(F.pad(h,(1,1,1,1),value=float('-inf')),3)": MARKS, "F.max_pool2d(nn.ConstantPad2d(1,-1e5)(h),3)": MARKS,
    "h+torch.zeros_like(h)": MAKES, "h+torch.full_like(h,0.3)": MAKES, "h*h.new_ones(6)": MAKES, "torch.cat([h,h.new_zeros(2,1,6,6)],1)": MAKES, "h+torch.rand_like(h)*0": "drawn anew at each call: no two runs agree",
    "h+F.mse_loss(h,h)": "a loss is for training, and is exact", "F.grid_sample(h,F.affine_grid(h[:,:2,0,:3]*0.1+m.theta,(2,8,5,5)))": "it gives coordinates, for which steps of 8 bits are too coarse", "h.bfloat16().float()": "another floating type",
    "torch.special.bessel_j0(h)": "not in edgeq's table of operators",
}  # fmt: skip


class _Constructors(ast.NodeTransformer):
    """Makes the module that a spelling constructs and calls, and lets the spelling call ``m.operation``."""

    module: nn.Module | None = None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Call) and ast.unparse(node.func).startswith("nn."):
            self.module = eval(ast.unparse(node.func))
            node.func = ast.parse("m.operation", mode="eval").body
        return node


class Between(nn.Module):
    """conv -> spelling -> a layer that takes what comes of it; with what the spellings name."""

    def __init__(self, spelling: str, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.count = 3
        self.slope = nn.Parameter(torch.rand(8))
        self.scalar = nn.Parameter(torch.tensor(0.3))
        self.weights, self.bias = nn.Parameter(torch.randn(4, 6, 6) / 3), nn.Parameter(torch.randn(4))
        self.matrix, self.square = nn.Parameter(torch.randn(4, 6) / 3), nn.Parameter(torch.randn(6, 6) / 3)
        self.six, self.kernel = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(4, 8, 3, 3) / 8)
        for name, value in constants().items():
            self.register_buffer(name, value)
        constructors = _Constructors()
        source = ast.unparse(constructors.visit(ast.parse(spelling, mode="eval")))
        self.operation = constructors.module
        self.function = eval(f"lambda m, h: {source}")
        self.eval()
        with torch.no_grad():
            made = self.function(self, self.first(inputs()))
        convolutions = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        dim = made.dim()
        self.second = convolutions[dim](made.shape[1], 4, 1) if dim in convolutions else nn.Linear(made.shape[-1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self, self.first(x)))


def inputs() -> Tensor:
    """A batch of two images."""
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(4))


def constants() -> dict[str, Tensor]:
    """The buffers of the network: tables, statistics, masks, indices, coordinates."""
    generator = torch.Generator().manual_seed(5)
    return {
        "table": torch.randn(8, 6, 6, generator=generator),
        "mean": torch.randn(8, generator=generator),
        "var": torch.rand(8, generator=generator) + 0.5,
        "mask": (torch.rand(6, 6, generator=generator) > 0.5).logical_and(torch.arange(6) > 0),
        "causal": torch.full((6, 6), float("-inf")).triu(1),
        "index": torch.tensor([3, 0, 5, 1]),
        "places": torch.randint(0, 8, (2, 8, 6, 6), generator=generator),
        "rows": torch.tensor([1, 0]),
        "theta": torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.8, 0.1]]).repeat(2, 1, 1),
        "grid": torch.rand(2, 5, 5, 2, generator=generator) * 1.8 - 0.9,
    }
